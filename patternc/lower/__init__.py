"""From meaning to plan: disjoint parts, the phases that run them, and the tiles they walk."""
