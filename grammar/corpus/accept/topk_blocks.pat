(causal & chunk(64)) | ((causal - chunk(64)) & topk(gate, 3, block=64))
