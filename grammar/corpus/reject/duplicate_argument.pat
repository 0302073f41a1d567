stride(3, s=4)
