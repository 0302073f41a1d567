"""patternc."""
