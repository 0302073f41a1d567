causal & topk(exact, 4, force=windw(4))
