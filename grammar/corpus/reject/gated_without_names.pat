gated(causal, full)
