let w
causal
