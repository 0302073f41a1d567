causal & gated(far=stride(4), near=window(3) | sinks(1), drawn=topk(s, 2)) - columns([2])
