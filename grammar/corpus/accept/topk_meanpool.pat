causal & topk(meanpool(64), 8, block=64, force=chunk(64))
