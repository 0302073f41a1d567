causal
assert hops <= 2 for every n
