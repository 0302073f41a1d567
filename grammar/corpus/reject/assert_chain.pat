causal
assert 1 <= hops <= 2
