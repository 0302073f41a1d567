where(q / 2 == k)
