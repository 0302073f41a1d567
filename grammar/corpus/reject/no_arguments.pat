causal & self(3)
