"""The indexer's scores in Triton's interpreter: the kernel computes I[t, s] = sum_j w_tj relu(q_tj . k_s) as it is written.

float32 and float16 only; the interpreter gets bfloat16 wrong.
"""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from patternc.backends import triton_indexer  # noqa: E402 - needs triton

# Queries and keys of a tile: as a GPU of generation 9 gets them, as others do (None), or small.
TILES = st.sampled_from([None, 9, (1, 16), (2, 32), (4, 16), (8, 64)])
LAYOUTS = st.sampled_from(["plain", "turned", "apart", "within", "shared"])
ROOM = 8192

pytestmark = [pytest.mark.usefixtures("filled"), pytest.mark.filterwarnings("error::RuntimeWarning")]


def wanted(queries, keys, weights, last=None):
    """The equation in float64, all products at once."""
    batch = max(t.shape[0] for t in (queries, keys, weights))
    queries, keys, weights = (t.double().expand(batch, *t.shape[1:]) for t in (queries, keys, weights))
    scores = torch.einsum("bhr,bhrn->brn", weights, torch.einsum("bhrd,bknd->bhrn", queries, keys).relu())[:, None]
    if last is None:
        return scores
    rows, n = scores.shape[2:]
    return scores.masked_fill(torch.arange(n)[None, :] > last + torch.arange(rows)[:, None], -torch.inf)


def scored(*inputs):
    """What the kernel says, and nothing written elsewhere."""
    made, empty = [], torch.empty

    def roomy(*shape, **options):
        size = torch.Size(shape).numel()
        made.append(empty(size + 2 * ROOM, **options))
        return made[-1][ROOM : ROOM + size].view(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", roomy)
        got = triton_indexer.indexed(*inputs)
    assert made
    assert all(bool(memory[edge].isnan().all()) for memory in made for edge in (slice(ROOM), slice(-ROOM, None)))
    return got


def check(queries, keys, weights, last=None):
    got = scored(queries, keys, weights, last)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted(queries, keys, weights, last), atol=1e-4, rtol=1e-5)
    return got


def laid(t, layout):
    """The same numbers, differently in memory; with "shared", those of the first of the batch in all of it."""
    if layout == "turned":
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "apart":
        return t.new_full([*t.shape, 16], torch.nan)[..., 0].copy_(t)
    if layout == "within":  # in rows that are not copied, and among numbers that numpy warns of
        wide = t.new_full([*(size + 4 for size in t.shape[:-1]), t.shape[-1] // 16 * 16 + 48], torch.inf)
        inner = wide[..., 16 : 16 + t.shape[-1]]
        for axis, size in enumerate(t.shape[:-1]):
            inner = inner.narrow(axis, 2, size)
        return inner.copy_(t)
    return t[:1].expand(t.shape) if layout == "shared" else t


def random_inputs(batches=(1, 1, 1), rows=5, n=70, heads=3, dim=20, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batches[0], heads, rows, dim), (batches[1], 1, n, dim), (batches[2], heads, rows)
    queries, keys, weights = (torch.randn(shape, generator=generator) for shape in shapes)
    weights[weights.abs() < 0.1] = 0
    return queries.to(dtype), keys.to(dtype), weights


def tiled(patch, tile):
    """Tiles of a GPU, or small ones; and programs that are given several of them."""
    own = triton_indexer.indexed_blocks
    patch.setattr(triton_indexer, "PROGRAMS", 4)
    if tile == 9:
        patch.setattr(triton_indexer, "indexed_blocks", lambda heads, dim, itemsize, _: own(heads, dim, itemsize, 9))
    elif tile is not None:

        def blocks(*case):
            (_, _, wide, dims), options = own(*case)
            return (max(tile[0], 16 // wide), tile[1], wide, dims), options

        patch.setattr(triton_indexer, "indexed_blocks", blocks)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # shrinking takes minutes here
)
@given(
    batches=st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 1, 1), (1, 2, 1), (1, 1, 2), (3, 1, 3)]),
    rows=st.integers(1, 20),
    n=st.integers(1, 200),
    heads=st.integers(1, 9),
    dim=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    of_weights=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    layouts=st.tuples(LAYOUTS, LAYOUTS, LAYOUTS),
    last=st.none() | st.integers(0, 210),
    tile=TILES,
    seed=st.integers(0, 99),
)
def test_any_shape(batches, rows, n, heads, dim, dtype, of_weights, layouts, last, tile, seed):
    queries, keys, weights = random_inputs(batches, rows, n, heads, dim, dtype, seed)
    inputs = [laid(t, layout) for t, layout in zip((queries, keys, weights.to(of_weights)), layouts, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        tiled(patch, tile)
        check(*inputs, last)


@pytest.mark.parametrize(("heads", "dim", "dtype"), [(64, 128, "float16"), (128, 256, "float16"), (64, 100, "float32")])
def test_real_sizes(heads, dim, dtype):
    for tile in (None, 9):
        with pytest.MonkeyPatch.context() as patch:
            tiled(patch, tile)
            check(*random_inputs((2, 1, 2), 9, 150, heads, dim, getattr(torch, dtype)), last=100)


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (1, 300), (300, 1), (4, 64), (5, 65), (3, 63)])
def test_edges_of_tiles(rows, n):
    for last in (None, 0, n - rows, n - 1, n + 7):
        check(*random_inputs(rows=rows, n=n), last=last)


def test_what_a_row_does_not_look_at_is_the_same_in_all_tiles():
    inputs = random_inputs(rows=30, n=200)
    whole = triton_indexer.indexed(*inputs)
    for tile in (None, 9, (1, 16), (16, 128)):
        with pytest.MonkeyPatch.context() as patch:
            tiled(patch, tile)
            for last in (0, 17, 170):
                hidden = torch.arange(200)[None, :] > last + torch.arange(30)[:, None]
                assert torch.equal(triton_indexer.indexed(*inputs, last).isneginf()[0, 0], hidden)
                torch.testing.assert_close(check(*inputs, last)[0, 0][~hidden], whole[0, 0][~hidden])


def test_nan_stays_where_it_is():
    queries, keys, weights = random_inputs(rows=6, n=80)
    keys[0, 0, 50], queries[0, 1, 2] = torch.nan, torch.nan
    bad = torch.zeros(6, 80, dtype=torch.bool)
    bad[:, 50], bad[2] = True, True
    assert torch.equal(triton_indexer.indexed(queries, keys, weights)[0, 0].isnan(), bad)
    bad[:, 10:] = False
    assert torch.equal(triton_indexer.indexed(queries, keys[:, :, :10], weights)[0, 0].isnan(), bad[:, :10])
    assert bool(triton_indexer.indexed(queries, keys, weights, 0)[0, 0, :, 6:].isneginf().all())


@pytest.mark.parametrize(("rows", "n"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_score(rows, n):
    assert triton_indexer.indexed(*random_inputs(rows=rows, n=n)).shape == (1, 1, rows, n)
