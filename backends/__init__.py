"""Backends: one `emit_*.py` each, found by its file name."""
