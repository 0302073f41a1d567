global([])
