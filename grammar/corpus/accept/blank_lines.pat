

# A comment, a tab and a carriage return.
let w = 4

	causal & window(w)

# the end