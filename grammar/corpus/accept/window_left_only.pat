window(left=4_095)
