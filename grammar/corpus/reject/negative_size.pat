causal & window(-3)
