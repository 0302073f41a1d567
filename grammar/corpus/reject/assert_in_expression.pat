causal & assert causal
