let let = 4
full
