causal & ~topk(scores, 4)
