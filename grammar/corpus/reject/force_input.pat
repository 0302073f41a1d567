causal & topk(exact, 4, force=document(ids))
