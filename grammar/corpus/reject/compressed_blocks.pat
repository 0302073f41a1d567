causal & topk(compressed(32, 16), 4, block=40)
