causal & topk(exact, 64)
