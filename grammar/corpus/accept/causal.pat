causal
