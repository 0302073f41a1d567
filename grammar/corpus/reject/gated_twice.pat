gated(a=causal) & gated(b=full)
