def longformer(w, G) = local(w) | global(G)
longformer(4)
