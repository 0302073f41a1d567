causal & topk(indexer(heads=0), 4)
