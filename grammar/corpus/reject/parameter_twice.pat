def f(x, x) = window(x)
f(3, 4)
