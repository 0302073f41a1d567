causal & topk(compressed(32, 12), 4, block=48)
