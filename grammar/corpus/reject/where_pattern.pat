where(causal)
