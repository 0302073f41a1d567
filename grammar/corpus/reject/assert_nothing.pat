causal
assert
