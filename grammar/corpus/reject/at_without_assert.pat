causal at 4
