where(q % n == 1)
