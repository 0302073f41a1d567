~random(3)
