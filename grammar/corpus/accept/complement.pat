~~causal & ~(window(2) | ~full) - ~stride(3)
