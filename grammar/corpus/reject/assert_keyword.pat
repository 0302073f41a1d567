causal
assert hops(layers=2) <= 2
