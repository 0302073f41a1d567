summary(4, 3, slot=1)
