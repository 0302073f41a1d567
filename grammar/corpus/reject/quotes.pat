causal & "window"
