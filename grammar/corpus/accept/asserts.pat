# Every form of an assert, before and after what it speaks of.
assert causal(near)
let w = 4
pattern near = causal & window(w)
near | causal & stride(w)
assert hops <= 2; assert hops(near) == 4 at 13
assert coverage(near) >= w // 2 - 1 at 1K
assert coverage() < 3 for all n
assert near <= causal
assert near | self == near   # a union binds tighter than a comparison
assert full >= layers(near + causal)
assert (
    hub(global([0]))
) at 1_024
