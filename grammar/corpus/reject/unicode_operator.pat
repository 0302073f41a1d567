where(q ≥ k)
