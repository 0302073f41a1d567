causal & chunk(8)
