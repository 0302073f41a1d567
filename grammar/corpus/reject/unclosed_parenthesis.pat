causal & (window(4) | sinks(2)
