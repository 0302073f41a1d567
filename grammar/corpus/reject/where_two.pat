where(q < k, k < 4)
