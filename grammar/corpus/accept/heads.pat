heads(4 * causal + 2 * (causal & window(4)) + full)
