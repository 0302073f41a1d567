causal window(4)
