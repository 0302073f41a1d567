causal
assert casual
