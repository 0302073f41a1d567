causal & topk(exact, 4, share=heads)
