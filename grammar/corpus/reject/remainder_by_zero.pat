where(q % (3 - 3) == k)
