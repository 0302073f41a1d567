causal
  & (window(4)
     | sinks(2)   # the bar stands first, or last:
     | stride(
         8
       )) -
  self
