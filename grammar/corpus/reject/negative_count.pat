window(left=-1, right=2)
