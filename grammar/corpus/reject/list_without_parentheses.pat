global[0]
