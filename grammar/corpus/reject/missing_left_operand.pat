| causal
