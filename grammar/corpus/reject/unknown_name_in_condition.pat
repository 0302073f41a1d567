where(q - k < w)
