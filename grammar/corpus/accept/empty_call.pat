causal() & self()
