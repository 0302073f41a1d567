let letter = 3
def nothing_in_order(K2, _x) = window(K2) & stride(_x)
nothing_in_order(letter, 2)
