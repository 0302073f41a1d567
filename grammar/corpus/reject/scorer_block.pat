causal & topk(meanpool(64), 4)
