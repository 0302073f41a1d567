causal
assert mistral
