causal
| q - k < 4
