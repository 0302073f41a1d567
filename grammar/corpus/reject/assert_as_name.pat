let assert = 4
causal
