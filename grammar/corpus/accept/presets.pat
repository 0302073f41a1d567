mistral | bigbird_with(4, 1) & causal
