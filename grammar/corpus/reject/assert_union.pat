causal
assert causal | self
