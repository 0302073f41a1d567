def near(w) = window(w)
near(3, 4)
