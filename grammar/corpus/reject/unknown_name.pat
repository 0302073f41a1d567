causal & windw(4)
