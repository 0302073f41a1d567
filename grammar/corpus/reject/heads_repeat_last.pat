heads(causal * 3 + full)
