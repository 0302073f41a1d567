causal
assert hops <= 2 at 2k
