causal and window(4)
