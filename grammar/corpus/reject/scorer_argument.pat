causal & topk(indexer(head=4), 4)
