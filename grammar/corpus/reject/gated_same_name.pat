gated(a=causal, a=full)
