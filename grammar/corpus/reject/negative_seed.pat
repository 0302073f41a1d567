random(2, seed=-1)
