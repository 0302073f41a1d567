window(3, dilation=4) | window(left=2, right=0, dilation=2)
