topk(scores)
