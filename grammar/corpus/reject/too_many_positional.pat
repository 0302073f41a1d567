window(3, 1)
