"""Which tiles are full and which are partial, for all n in closed form, against FlexAttention's block masks at one n."""

from typing import Any

import numpy as np
import pytest

import patternc as pc
from patternc.scalar import evaluate

torch = pytest.importorskip("torch")
flex = pytest.importorskip("torch.nn.attention.flex_attention")

TILE = 128
EXPRESSIONS = [
    "full",
    "causal",
    "causal & window(200)",
    "causal & (window(256) | sinks(4))",
    "local(64) | global([0])",
    "local(256) | rows([0..127]) | columns([0..127])",
    "causal & (window(64) | stride(64))",
    "causal & (chunk(256) | summary(256, 8))",
    "blocks(64, 1, 1) | global([0..63, -64..-1])",
    "causal & chunk(256)",
    "~window(130)",
    "where(k + 256 < q)",
]


def visited(loops: tuple[Any, ...], row: int, n: int) -> list[int]:
    """The key tiles that a list of loops visits for one row tile."""
    tiles = []
    for loop in loops:
        values = {"I": row, "n": n}
        start, count = int(evaluate(loop.start, values)), int(evaluate(loop.count, values))
        steps = range(start, start + loop.step * count, loop.step)
        tiles += [tile for tile in steps if evaluate(loop.guard, {**values, "x": tile})]
    return sorted(tiles)


def listed(counts: Any, indices: Any, row: int) -> list[int]:
    return sorted(indices[0, 0, row, : counts[0, 0, row]].tolist())


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("n", [640, 128, 384])
def test_tiles_equal_the_block_mask(expression: str, n: int) -> None:
    pattern = pc.parse(expression)
    mask = torch.from_numpy(pattern.mask(n))
    block_mask = flex.create_block_mask(lambda b, h, q, k: mask[q, k], 1, 1, n, n, device="cpu", BLOCK_SIZE=TILE)
    tiles = pattern.meaning().static.tiles(TILE, TILE)
    assert tiles.exact
    for row in range(n // TILE):
        partial = visited(tiles.partial, row, n)
        full = visited(tiles.full, row, n)
        assert partial == listed(block_mask.kv_num_blocks, block_mask.kv_indices, row), f"partial tiles of row tile {row}"
        assert full == listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices, row), f"full tiles of row tile {row}"


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_ragged_ends(expression: str) -> None:
    """At an n that is no multiple of the tile, every pair is in one visited tile, and full tiles hold no end of the keys."""
    n = 600
    pattern = pc.parse(expression)
    mask = pattern.mask(n)
    tiles = pattern.meaning().static.tiles(TILE, TILE)
    for row in range(-(-n // TILE)):
        rows = mask[row * TILE : (row + 1) * TILE]
        kinds = np.array([int(rows[:, j : j + TILE].any()) for j in range(0, n, TILE)])
        whole = np.array([rows[:, j : j + TILE].all() and j + TILE <= n for j in range(0, n, TILE)])
        assert visited(tiles.full, row, n) == np.flatnonzero(whole).tolist()
        assert visited(tiles.partial, row, n) == np.flatnonzero((kinds == 1) & ~whole).tolist()
