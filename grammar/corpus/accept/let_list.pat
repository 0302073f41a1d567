let G = [0..2, -1]
global(G) & columns(G)
