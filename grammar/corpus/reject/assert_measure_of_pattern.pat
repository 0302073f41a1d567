causal
assert hops <= full
