window(4, left=2)
