causal & ~gated(a=window(3), b=full)
