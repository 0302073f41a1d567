rows([0..])
