~causal & window(9) | self - none & full | sinks(1)
