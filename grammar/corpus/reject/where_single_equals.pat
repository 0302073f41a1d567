where(q = k)
