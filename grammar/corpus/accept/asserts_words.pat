# 'at', 'for' and the words of claims are names like any others; a claim's form says which is meant.
let at = 3
pattern for = window(at)
def hub(s) = sinks(s)
pattern hops = for | hub(2)
hops
assert hops == for | sinks(2)
assert hops <= 2 at 4
assert nonempty(for) for all n
assert hub(hub(1) | full)
