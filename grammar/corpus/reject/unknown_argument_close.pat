window(4, dilaton=2)
