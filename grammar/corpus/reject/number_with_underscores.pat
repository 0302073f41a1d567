window(4__096)
