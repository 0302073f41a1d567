layers(2 * gated(window=window(3), all=heads(causal + full)) + causal)
