layers(5 * (causal & window(1024)) + causal)
