blocks(64, 1, 1) | random(3, block=64, seed=7, pool=16)
