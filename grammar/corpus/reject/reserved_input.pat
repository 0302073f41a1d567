causal & topk(causal, 3)
