causal && window(4)
