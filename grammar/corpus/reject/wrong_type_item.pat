rows([0, causal])
