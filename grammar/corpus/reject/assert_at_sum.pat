causal
assert hops <= 2 at 4 + 4
