causal & topk(indexer, 2K)
