causal
assert causal == 1
