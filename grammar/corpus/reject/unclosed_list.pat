rows([0, 1
