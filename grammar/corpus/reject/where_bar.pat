where(q < k | q > k)
