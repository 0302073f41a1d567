causal & indexer
