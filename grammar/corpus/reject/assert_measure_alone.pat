causal
assert hops
