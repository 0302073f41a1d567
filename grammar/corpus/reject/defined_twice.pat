let a = full
let a = causal
a
