causal & topk(meanpool, 4)
