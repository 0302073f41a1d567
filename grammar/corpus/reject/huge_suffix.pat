window(2048M)
