heads(full, causal)
