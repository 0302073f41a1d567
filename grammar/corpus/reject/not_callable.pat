let a = full
a(3)
