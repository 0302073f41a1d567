"""On a CUDA GPU: the kernels that score and rank keys, against the torch functions that they stand in for, in float64."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from patternc import scorers  # noqa: E402
from patternc.backends import triton_importance, triton_indexer, triton_picks  # noqa: E402 - needs triton
from patternc.runtime import picking  # noqa: E402 - needs torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

DTYPES = ["bfloat16", "float16", "float32"]


def randn(*shape, dtype="float32", seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, device="cuda", generator=generator).to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("dim", "of_keys"), [(64, "float32"), (128, "float32"), (128, "bfloat16"), (192, "float32")])
@pytest.mark.parametrize(
    ("sizes", "n", "n_q"), [((32, 16, 64), 3000, 1100), ((32, 16, 1024), 5000, 300), ((24, 8, 8), 777, 777)]
)
def test_importance(sizes, n, n_q, dim, of_keys, together, dtype):
    queries = randn(2, 8, n_q, dim, dtype=dtype, seed=1)
    keys = randn(2, 2, (n - sizes[0]) // sizes[1] + 1, dim, dtype=of_keys, seed=2)
    given = dim**-0.5, n - n_q, (*sizes, -(-n // sizes[2])), together
    got = triton_importance.importance(torch, queries, keys, *given)
    want = scorers.importance(torch, queries.double(), keys.double(), *given)
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-4)
    ends, at = torch.arange(keys.shape[2], device="cuda") * sizes[1] + sizes[0] - 1, torch.arange(n - n_q, n, device="cuda")
    scores = scorers.products(queries.double(), keys.double()) * given[0]
    lse = scores.masked_fill(ends > at[:, None], -torch.inf).logsumexp(-1).float()
    again = triton_importance.importance(torch, queries, keys, *given, lse)
    torch.testing.assert_close(again.double(), want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [(64, 128), (4, 32), (9, 80)])
def test_indexer(heads, dim, dtype):
    queries, keys = randn(2, heads, 700, dim, dtype=dtype, seed=1), randn(2, 1, 1500, dim, dtype=dtype, seed=2)
    weights = randn(2, heads, 700, seed=3)
    got = triton_indexer.indexed(queries, keys, weights, 800)
    want = scorers.indexed(queries.double(), keys.double(), weights.double())
    seen = torch.arange(1500, device="cuda") <= 800 + torch.arange(700, device="cuda")[:, None]
    assert bool(got.masked_select(~seen).isneginf().all())
    torch.testing.assert_close(got.double().masked_select(seen), want.masked_select(seen), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize(("m", "most"), [(100, 7), (5000, 512), (70_000, 2048), (200_000, 4096)])
def test_ranking(m, most):
    scores = randn(2, 1, 40, m, seed=m).mul(8).round() / 8  # with ties
    may = torch.rand(2, 1, 40, m, device="cuda") < 0.9
    got = triton_picks.ranked(scores, may, None, None, most, most)
    assert torch.equal(got, picking.compacted(picking.best(scores, may, most), most))
