window 4
