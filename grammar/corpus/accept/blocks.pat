blocks(4, left=1, right=1)
