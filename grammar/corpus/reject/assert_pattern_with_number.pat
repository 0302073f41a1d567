causal
assert window(4) <= 4
