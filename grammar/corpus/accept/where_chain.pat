where(0 <= q - k < 128 != n)
