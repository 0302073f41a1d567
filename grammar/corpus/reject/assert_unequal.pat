causal
assert hops != 2
