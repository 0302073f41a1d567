rows(0)
