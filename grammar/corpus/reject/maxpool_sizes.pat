causal & topk(maxpool(meanpool(48), 64), 4, block=64)
