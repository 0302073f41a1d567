causal
assert hop <= 2
