window(4.5)
