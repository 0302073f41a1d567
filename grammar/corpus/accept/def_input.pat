def dsa(scores, count=2048) = causal & topk(scores, count)
dsa(indexer)
