causal & topk(window(4), 4)
