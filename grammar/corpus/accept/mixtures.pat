causal & layers(heads(window(2) + window(4)) + 2 * stride(3)) | heads(sinks(1) + 3 * none)
