let w = 4
causal
assert hops <= 2 at w
