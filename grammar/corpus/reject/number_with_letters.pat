window(4x)
