pattern near = window(3)
pattern far = stride(5)
near | far
