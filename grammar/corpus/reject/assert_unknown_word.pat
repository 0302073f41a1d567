causal
assert connected(causal)
