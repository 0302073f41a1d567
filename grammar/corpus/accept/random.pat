causal & random(3)
