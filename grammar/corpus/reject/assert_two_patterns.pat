causal
assert hops(causal, full) <= 2
