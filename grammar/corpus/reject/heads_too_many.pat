heads(4096 * causal + full)
