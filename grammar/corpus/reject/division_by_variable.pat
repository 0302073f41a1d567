where(q // k == 1)
