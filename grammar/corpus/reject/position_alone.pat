q & causal
