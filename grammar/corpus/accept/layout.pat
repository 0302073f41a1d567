causal & layout(table, 64)
