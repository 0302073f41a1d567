random(2, pool=all)
