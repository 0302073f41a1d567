full - window(3) - sinks(2) - (self - causal)
