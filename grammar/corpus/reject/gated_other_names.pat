layers(gated(a=causal, b=full) + gated(b=causal, a=full))
