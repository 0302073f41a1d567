blocks(b=4, 1, 1)
