let b = 64
causal & topk(compressed(32, 16, keys=pooled), 16, block=b, share=group, force=sinks(b) | blocks(b, 1, 0))
