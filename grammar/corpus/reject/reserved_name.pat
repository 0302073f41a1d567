let causal = full
causal
