local(6) | local(1)
