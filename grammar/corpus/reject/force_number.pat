causal & topk(exact, 4, force=4)
