heads(gated(a=window(3), b=full) + causal)
