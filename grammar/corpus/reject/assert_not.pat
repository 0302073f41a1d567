causal
assert not causal
