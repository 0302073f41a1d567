causal & ~causal
