causal || window(4)
