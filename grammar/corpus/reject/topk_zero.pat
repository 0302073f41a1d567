causal & topk(exact, 0)
