causal & topk(exact, 4, share=2)
