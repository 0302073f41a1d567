def banded(w, d = 1, inside = causal) = inside & window(w, dilation=d)
banded(4) | banded(3, d=2) | banded(2, inside=full,)
