causal & stride
