causal
window(4)
