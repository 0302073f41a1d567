causal
assert causal and nonempty
