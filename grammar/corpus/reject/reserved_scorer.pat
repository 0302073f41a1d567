def f(exact) = causal & topk(exact, 4)
f(scores)
