causal & (window(4])
