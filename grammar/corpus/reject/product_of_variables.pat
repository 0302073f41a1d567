where(q * k < 4)
