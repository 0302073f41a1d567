heads(0 * full + causal)
