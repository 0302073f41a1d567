window(1M * 4K)
