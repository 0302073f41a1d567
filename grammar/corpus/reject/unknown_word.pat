casual & window(4)
