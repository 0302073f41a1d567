causal + full
