causal & topk(maxpool(compressed(32, 16), 64), 4, block=64)
