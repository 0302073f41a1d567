def longformer(w, G) = local(w) | global(G)
longformer(8, [0, -1])
