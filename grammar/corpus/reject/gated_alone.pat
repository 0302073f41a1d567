causal & gated
