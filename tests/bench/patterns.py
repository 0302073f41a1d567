"""The thirteen patterns of the benchmark, and the floor that no kernel can beat."""

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

PEAK_FLOPS = 793e12
"""bf16 matrix product, 8192^3, measured on one H200."""
PEAK_BYTES = 4.27e12
"""Copy, bytes read plus bytes written a second, measured on one H200."""


def floor_ms(pairs: int, batch: int, heads: int, kv_heads: int, n: int, dim: int, *, itemsize: int = 2) -> float:
    """Milliseconds below which no forward pass can be: useful flops (4 a pair and dim) or q, k, v, o read and written once."""
    flops = 4 * pairs * dim * batch * heads
    moved = 2 * batch * (heads + kv_heads) * n * dim * itemsize
    return 1e3 * max(flops / PEAK_FLOPS, moved / PEAK_BYTES)


def pairs_of(expression: str, n: int) -> int:
    """Pairs of one head."""
    return pc.parse(expression).nnz(n)
