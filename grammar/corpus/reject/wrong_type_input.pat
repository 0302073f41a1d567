layout(4, 64)
