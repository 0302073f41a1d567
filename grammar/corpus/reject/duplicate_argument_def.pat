def near(w) = window(w)
near(w=3, w=4)
