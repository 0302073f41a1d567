causal & (chunk(8) | summary(8, 2) | summary(l=8, c=2, slot=1))
