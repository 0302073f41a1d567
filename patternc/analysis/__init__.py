"""Questions about a pattern, one a file, each answered by a `Verdict`: proved, refuted with a witness, or unknown."""
