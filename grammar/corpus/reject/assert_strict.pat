causal
assert causal < full
