causal & window(2k)
