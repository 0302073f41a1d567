causal - (window(4) | random(2, block=4))
