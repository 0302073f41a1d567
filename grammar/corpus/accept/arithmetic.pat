window(2*8 + 1) & stride(7 // 2) | chunk(10 % 4) | rows([-(1 + 1)])
