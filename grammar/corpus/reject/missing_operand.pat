causal &
