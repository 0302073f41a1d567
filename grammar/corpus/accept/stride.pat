causal & (window(4) | stride(4))
