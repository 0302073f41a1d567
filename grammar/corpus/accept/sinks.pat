causal & (window(1K) | sinks(4))
