causal & topk(a, 8) & (topk(b, 8) | random(2))
