random(257)
