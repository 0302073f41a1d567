chunk(4, 5)
