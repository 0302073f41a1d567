window(w)
