"""Runtime inputs: documents, block tables and scores, in every form that a call takes."""

import pytest

import patternc as pc
from patternc.testing import assert_matches_dense, random_call

torch = pytest.importorskip("torch")
from patternc.runtime import operator  # noqa: E402 - needs torch

BACKENDS = pytest.mark.parametrize("backend", ["torch", "reference"])
B, H, HKV, N, NQ = 2, 4, 2, 140, 90


def check(text, backend, n=N, n_q=NQ, **inputs):
    call = random_call("full", n=n, n_q=n_q, batch=B, heads=H, kv_heads=HKV)
    assert_matches_dense(text, call.q, call.k, call.v, backend=backend, **inputs)


def scores(*shape, seed=0, levels=6):
    """Scores with many ties."""
    return torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(seed)).float()


# Documents


@BACKENDS
@pytest.mark.parametrize(
    "text", ["causal & document(ids)", "document(ids)", "causal & (document(ids) & window(20) | sinks(2))"]
)
@pytest.mark.parametrize("shape", [(N,), (1, N), (B, N)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_document_ids(backend, text, shape, dtype):
    steps = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.05
    check(text, backend, ids=steps.cumsum(-1).to(dtype) * 3 - 5)


@BACKENDS
@pytest.mark.parametrize("text", ["causal - document(ids)", "causal & ~document(ids) | random(2) & document(ids)"])
def test_documents_complemented(backend, text):
    check(text, backend, ids=(torch.arange(N) // 31)[None])


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_cumulative_lengths(backend, dtype):
    lengths = torch.tensor([0, 7, 7, 64, 128, N], dtype=dtype)
    check("causal & document(cu_seqlens)", backend, cu_seqlens=lengths)
    ids = torch.repeat_interleave(torch.arange(5), lengths.diff())
    call = random_call("full", n=N, heads=2)
    attention = pc.compile("causal & document(ids)", backend=backend)
    assert torch.equal(attention(call.q, call.k, call.v, ids=ids), attention(call.q, call.k, call.v, ids=lengths))


@BACKENDS
def test_every_position_its_own_document(backend):
    check("document(ids)", backend, ids=torch.arange(N))


# Block tables


@BACKENDS
@pytest.mark.parametrize("leading", [(), (1,), (H,), (1, 1), (B, 1), (1, H), (B, H)], ids=str)
@pytest.mark.parametrize(("text", "block"), [("causal & layout(t, 64)", 64), ("layout(t, 16) | window(3)", 16)])
def test_block_tables(backend, leading, text, block):
    side = -(-N // block)
    table = torch.rand(*leading, side, side, generator=torch.Generator().manual_seed(1)) < 0.4
    check(text, backend, t=table)


@BACKENDS
@pytest.mark.parametrize("fill", [False, True])
def test_block_tables_all_or_nothing(backend, fill):
    check("causal & layout(t, 32)", backend, t=torch.full((H, 5, 5), fill))


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_block_tables_of_numbers(backend, dtype):
    table = (torch.rand(5, 5, generator=torch.Generator().manual_seed(1)) < 0.5).to(dtype)
    check("layout(t, 32)", backend, t=table)


@BACKENDS
@pytest.mark.parametrize(
    "text", ["causal - layout(t, 64)", "layout(t, 64) & layout(u, 20)", "~layout(t, 64) & ~layout(u, 20) | sinks(1)"]
)
def test_block_tables_combined(backend, text):
    generator = torch.Generator().manual_seed(1)
    tables = {"t": torch.rand(3, 3, generator=generator) < 0.5, "u": torch.rand(H, 7, 7, generator=generator) < 0.5}
    check(text, backend, **{name: table for name, table in tables.items() if f"({name}," in text})


# Selections

SELECTIONS = [
    "causal & topk(s, 5)",
    "topk(s, 3) | window(4)",
    "causal & (window(9) | topk(s, 4) | stride(16))",
    "(causal & random(9)) & topk(s, 2) | random(2)",
    "chunk(50) & topk(s, 4) | random(4, block=7)",
]


@BACKENDS
@pytest.mark.parametrize("leading", [(1, 1), (B, 1), (1, H), (B, HKV), (B, H), (1, HKV)], ids=str)
@pytest.mark.parametrize("text", SELECTIONS)
def test_selections(backend, leading, text):
    check(text, backend, s=scores(*leading, NQ, N))


@BACKENDS
@pytest.mark.parametrize("heads", [1, HKV, H])
@pytest.mark.parametrize("text", ["causal & topk(s, 5)", "causal & (window(9) | topk(s, 4, block=16))"])
def test_scores_that_are_computed_when_asked(backend, heads, text):
    table = scores(B, heads, NQ, N)
    asked = []

    def rows(start, stop):
        asked.append((start, stop))
        return table[:, :, start:stop]

    check(text, backend, s=rows)
    call = random_call("full", n=N, n_q=NQ, batch=B, heads=H, kv_heads=HKV)
    attention = pc.compile(text, backend=backend)
    assert torch.equal(attention(call.q, call.k, call.v, s=rows), attention(call.q, call.k, call.v, s=table))
    assert all(0 <= start < stop <= NQ for start, stop in asked)


def test_long_selections_ask_for_scores_in_chunks(monkeypatch):
    n = 300
    asked = []

    def rows(start, stop):
        asked.append((start, stop))
        return torch.arange(n).expand(1, 1, stop - start, n).float()

    attention = pc.compile("causal & topk(s, 1)", backend="torch")
    q = torch.zeros(1, 8, n, 8)
    v = torch.arange(n).float().view(1, 1, n, 1).expand(1, 1, n, 8)
    module = operator.module_of(str(attention.pattern), 0, "torch", q, v)
    monkeypatch.setattr(module.select, "__defaults__", (1 << 18,))
    out = attention(q, q[:, :1], v, s=rows)
    assert len(asked) > 2
    assert [start for start, _ in asked] == [0, *(stop for _, stop in asked[:-1])]
    assert asked[-1][1] == n
    assert torch.equal(out[0, 3, :, 0], torch.arange(n).float())  # the best causal key is the query's own


@BACKENDS
@pytest.mark.parametrize("wide", [True, False], ids=["a score a key", "a score a block"])
@pytest.mark.parametrize("n", [N, 128, 15, 1])
@pytest.mark.parametrize("text", ["causal & topk(s, 3, block=16)", "causal & window(20) & topk(s, 1, block=16) | sinks(2)"])
def test_selected_blocks(backend, wide, n, text):
    check(text, backend, n=n, n_q=n, s=scores(B, HKV, n, n if wide else -(-n // 16)))


@BACKENDS
@pytest.mark.parametrize("block", [1, 8])
def test_ties_go_to_the_lowest_key(backend, block):
    text = f"causal & topk(s, 4, block={block})"
    check(text, backend, s=torch.zeros(1, 1, NQ, N))
    v = torch.eye(40)[None, None]
    q = torch.zeros(1, 1, 40, 8)
    out = pc.compile(text, backend=backend)(q, q, v, s=torch.zeros(1, 1, 40, 40))
    expected = pc.parse(f"causal & sinks({4 * block})").mask(40)
    assert torch.equal(out[0, 0] > 0, torch.from_numpy(expected))


@BACKENDS
@pytest.mark.parametrize("text", ["causal & topk(s, 5)", "causal & topk(s, 2, block=16)", "window(9) | topk(s, 5)"])
def test_nan_and_infinite_scores(backend, text):
    table = scores(1, H, NQ, N)
    noise = torch.rand(table.shape, generator=torch.Generator().manual_seed(5))
    table[noise < 0.3] = -torch.inf
    table[noise > 0.8] = torch.nan
    table[(noise > 0.4) & (noise < 0.42)] = torch.inf
    table[:, :, 3] = torch.nan
    table[:, :, 4] = -torch.inf
    check(text, backend, s=table)


@BACKENDS
@pytest.mark.parametrize("k", [N - 1, N, 10 * N])
def test_fewer_candidates_than_asked_for(backend, k):
    check(f"causal & topk(s, {k})", backend, s=scores(1, 1, NQ, N))
    check(f"window(3) & topk(s, {k}, block=4)", backend, s=scores(1, 1, NQ, N))


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_score_dtypes(backend, dtype):
    check("causal & topk(s, 5)", backend, s=scores(1, 1, NQ, N).to(dtype))


@BACKENDS
@pytest.mark.parametrize("text", ["topk(s, 6) & topk(t, 40)", "topk(s, 4) | topk(t, 4)", "topk(s, 3) | causal & topk(s, 3)"])
def test_several_selections(backend, text):
    inputs = {"s": scores(B, 1, NQ, N), "t": scores(1, H, NQ, N, seed=2)}
    check(text, backend, **{name: table for name, table in inputs.items() if f"({name}," in text})


@BACKENDS
def test_everything_at_once(backend):
    inputs = {
        "indexer": scores(B, 1, NQ, N),
        "t": torch.rand(H, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.3,
        "ids": torch.arange(N)[None].expand(B, N) // 50,
    }
    text = "causal & document(ids) & (window(20) | layout(t, 16) | stride(9) | random(3) | topk(indexer, 8))"
    check(text, backend, **inputs)
    check(f"heads(({text}) + (causal & topk(indexer, 3)) + none)", backend, **inputs)


@BACKENDS
def test_bound_inputs(backend):
    """Inputs given to `compile` serve every call, unless a call gives its own."""
    call = random_call("full", n=N, heads=2)
    early, late = torch.arange(N) // 10, torch.arange(N) // 70
    attention = pc.compile("causal & document(ids)", backend=backend, ids=early)
    assert_matches_dense(attention, call.q, call.k, call.v)
    assert_matches_dense(attention, call.q, call.k, call.v, ids=late)
