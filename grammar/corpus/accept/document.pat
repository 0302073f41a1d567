causal & document(ids)
