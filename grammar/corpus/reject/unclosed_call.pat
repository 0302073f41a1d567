causal
  & window(
