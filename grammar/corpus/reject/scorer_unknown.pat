causal & topk(meanpol(64), 4, block=64)
