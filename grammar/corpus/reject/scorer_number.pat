causal & topk(64, 4)
