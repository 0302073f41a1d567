causal & (topk(indexer(8, 32), 2K) | topk(indexer(heads=8, dim=32, name=fast), 16))
