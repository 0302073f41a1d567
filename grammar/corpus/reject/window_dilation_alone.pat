window(dilation=2)
