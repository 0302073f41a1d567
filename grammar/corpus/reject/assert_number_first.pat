causal
assert 2 >= hops
