where(not (q < k or k % 2 == 1) and (true or false))
