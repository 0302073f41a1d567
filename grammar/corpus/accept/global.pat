local(512) | global([0, 5, -1])
