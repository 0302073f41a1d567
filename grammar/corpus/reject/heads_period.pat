heads(63 * full + causal) & heads(64 * full + causal)
