causal & topk(exact, 4, 1, group)
