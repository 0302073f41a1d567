let a = causal
