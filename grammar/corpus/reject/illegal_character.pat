causal & $window(4)
