"""The thirteen patterns of the benchmark."""

import patternc as pc

PATTERNS = {
    "causal": "causal",
    "window(4096)": "causal & window(4096)",
    "window(1024)": "causal & window(1024)",
    "window(128)": "causal & window(128)",
    "window(4096) | sinks(4)": "causal & (window(4096) | sinks(4))",
    "local(512) | global([0])": "local(512) | global([0])",
    "local(512) | global([0..63])": "local(512) | global([0..63])",
    "strided(256)": "causal & (window(256) | stride(256))",
    "stride(64)": "causal & stride(64)",
    "fixed(256, 8)": "causal & (chunk(256) | summary(256, 8))",
    "dilated(512, 4)": "causal & window(512, dilation=4)",
    "chunk(4096)": "causal & chunk(4096)",
    "bigbird": "bigbird",
}


def chosen(text: str) -> dict[str, str]:
    """The patterns of a comma list of names, in which ', ' is written '; '; all of them for an empty one.

    Raises:
        ValueError: a name is none of them.
    """
    names = [name.strip().replace("; ", ", ") for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PATTERNS:
            raise ValueError(f"no pattern '{name}'; there are {', '.join(key.replace(', ', '; ') for key in PATTERNS)}")
    return {name: PATTERNS[name] for name in names} or PATTERNS


def pairs_of(expression: str, n: int) -> int:
    """Pairs of one head."""
    return pc.parse(expression).nnz(n)
