causal & gated(c=where(k >= 31 and k % 16 == 15), s=topk(compressed(32, 16, keys=pooled, lse=c_lse), 16, block=64, share=group))
