window(size=4)
