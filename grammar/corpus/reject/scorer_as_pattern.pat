causal & meanpool(64)
