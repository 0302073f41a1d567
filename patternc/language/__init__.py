"""From text to meaning: syntax, parser, primitives, elaboration and printing."""
