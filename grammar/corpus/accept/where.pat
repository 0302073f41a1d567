where(0 <= q - k and q - k < 128)
