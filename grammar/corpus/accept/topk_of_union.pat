(sinks(2) | window(8)) & topk(scores, 4)
