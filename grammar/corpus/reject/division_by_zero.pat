where(q // 0 == k)
