window(4 // 0)
