causal)
