let w = 0
causal
assert hops <= 4 // w
