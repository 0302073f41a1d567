heads(2 * full + causal) + full
