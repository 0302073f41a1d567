causal & topk(maxpool(meanpool(16), 64), 4, block=64, share=query)
