let a = causal & b
let b = a | self
a
