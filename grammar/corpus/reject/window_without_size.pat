causal & window
