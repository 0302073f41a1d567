let size = 4
let band = window(2 * size - 1)
causal & band
