rows([0..1]) | columns([0..1, -2..-1])
