def f(x) = x | f(x)
f(full)
