"""Compiling, loading and calling what the backends emit."""
