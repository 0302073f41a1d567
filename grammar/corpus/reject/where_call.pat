where(q < window(4))
