causal & true
