causal & window(4)  # Mistral, at the size of a picture
