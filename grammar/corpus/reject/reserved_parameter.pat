def f(k) = window(k)
f(3)
