causal
assert hops <= 2 at 0
