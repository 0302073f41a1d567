causal & topk(exact, 4, force=sinks(2) | random(2))
