heads | causal
