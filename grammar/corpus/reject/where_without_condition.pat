where(q - k)
