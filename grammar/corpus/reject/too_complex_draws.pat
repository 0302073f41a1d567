random(2) - (stride(3) | stride(5) | stride(7) | stride(11) | stride(13))
