let a = window(4); let b = stride(4);; a | b;
