let a = b & causal
let b = window(5)
a
