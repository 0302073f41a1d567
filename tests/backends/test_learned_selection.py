"""Selections that score queries and keys themselves, against their equations as plain loops over floats."""

import math
from dataclasses import dataclass, field

import pytest

import patternc as pc
from patternc.testing import random_call

torch = pytest.importorskip("torch")
from patternc.runtime import operator  # noqa: E402 - needs torch

BACKENDS = pytest.mark.parametrize("backend", ["torch", "reference"])
INF = math.inf


@dataclass
class Case:
    """A call in lists of floats: q [batch][head][query][dim], k [batch][key head][key][dim]; ``first`` is the first query."""

    q: list
    k: list
    inputs: dict = field(default_factory=dict)
    scale: float = 1.0

    @property
    def n(self):
        return len(self.k[0][0])

    @property
    def first(self):
        return self.n - len(self.q[0][0])


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def key_head(case, b, h):
    return case.k[b][h // (len(case.q[b]) // len(case.k[b]))]


def exact(case, b, h, i):
    return [case.scale * dot(case.q[b][h][i], key) for key in key_head(case, b, h)]


def mean_of(block):
    def scores(case, b, h, i):
        keys = key_head(case, b, h)
        found = []
        for start in range(0, case.n, block):
            mine = keys[start : start + block]
            mean = [sum(column) / len(mine) for column in zip(*mine, strict=True)]
            found.append(case.scale * dot(case.q[b][h][i], mean))
        return found

    return scores


def max_of(below, block):
    def scores(case, b, h, i):
        each = below(case, b, h, i)
        return [max(each[start : start + block]) for start in range(0, len(each), block)]

    return scores


def lightning(case, b, h, i):
    """I = sum_j w_j relu(q_j . k)."""
    q, k, w = (case.inputs[f"indexer_{letter}"][b] for letter in "qkw")
    return [sum(w[j][i] * max(0.0, dot(q[j][i], key)) for j in range(len(w))) for key in k[0]]


def importance(l, d, block, compressed=None):
    """NSA: attention to compressed keys, and each compressed key's share counted once for every d keys inside the block."""

    def scores(case, b, h, i):
        keys, t = key_head(case, b, h), case.first + i
        worth = [0.0] * -(-case.n // block)
        seen = [c for c in range(len(keys)) if c * d + l - 1 <= t]
        pooled = []
        for c in seen:
            mine = keys[c * d : c * d + l]
            pooled.append([sum(column) / l for column in zip(*mine, strict=True)])
        if compressed is not None:
            group = len(case.q[b]) // len(case.k[b])
            pooled = [case.inputs[compressed][b][h // group][c] for c in seen]
        logits = [case.scale * dot(case.q[b][h][i], key) for key in pooled]
        total = sum(math.exp(x) for x in logits)
        for c, x in zip(seen, logits, strict=True):
            for unit in range(c, c + l // d):
                worth[unit * d // block] += math.exp(x) / total
        return worth

    return scores


def together(scores, share):
    """The sum over the query heads that pick alike."""
    if share == "head":
        return scores

    def summed(case, b, h, i):
        group = len(case.q[b]) // len(case.k[b]) if share == "group" else len(case.q[b])
        heads = range(h // group * group, h // group * group + group)
        return [sum(column) for column in zip(*(scores(case, b, head, i) for head in heads), strict=True)]

    return summed


def expected(case, scores, allowed, k, block=1, share="head", force=lambda q: (), per_key=False):
    """The mask [batch][head][query][key]: ``allowed`` and ``force`` list the keys of a position."""
    of = together(scores, share)
    mask = torch.zeros(len(case.q), len(case.q[0]), len(case.q[0][0]), case.n, dtype=torch.bool)
    for b, h, i in ((b, h, i) for b in range(mask.shape[0]) for h in range(mask.shape[1]) for i in range(mask.shape[2])):
        q = case.first + i
        row = of(case, b, h, i)
        if per_key and block > 1:  # of scores of keys, a block is worth the best of its allowed keys
            by_block = [-INF] * -(-case.n // block)
            for key in allowed(q):
                by_block[key // block] = max(by_block[key // block], row[key] if not math.isnan(row[key]) else -INF)
            row = by_block
        candidates = {key // block for key in allowed(q)}
        must = {key // block for key in force(q)} & candidates
        rest = [c for c in candidates - must if row[c] > -INF]
        chosen = must | set(sorted(rest, key=lambda c: (-row[c], c))[: max(0, k - len(must))])
        for key in allowed(q):
            mask[b, h, i, key] = key // block in chosen
    return mask


def causal(q):
    return range(q + 1)


N, NQ, B, H, HKV, D = 45, 30, 2, 4, 2, 8
SCALE = D**-0.5


def tensors(n=N, n_q=NQ, batch=B, heads=H, kv_heads=HKV, whole=False, seed=0):
    """Queries, keys and values; of small whole numbers, where every sum is exact and ties abound."""
    call = random_call("full", n=n, n_q=n_q, batch=batch, heads=heads, kv_heads=kv_heads, head_dim=D, seed=seed)
    if not whole:
        return call.q, call.k, call.v
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randint(-1, 2, t.shape, generator=generator).float() for t in (call.q, call.k))
    return q, k, call.v


def case_of(q, k, inputs=None, scale=1.0):
    listed = {name: t.double().tolist() for name, t in (inputs or {}).items()}
    return Case(q.double().tolist(), k.double().tolist(), listed, scale)


def mask_of(text, backend, q, k, scale=None, **inputs):
    """Which keys a compiled pattern reads: with values that are one-hot, an output is positive where its key is read."""
    n = k.shape[2]
    v = torch.eye(n).expand(k.shape[0], k.shape[1], n, n)
    small = 2.0**-10  # so that no weight underflows; a power of two keeps whole numbers exact
    return pc.compile(text, backend=backend)(q, k, v, scale=small if scale is None else scale, **inputs) > 0


def indexer_inputs(heads=3, dim=5, batch=B, n=N, n_q=NQ, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape):
        return torch.randint(-2, 3, shape, generator=generator).float()

    return {
        "indexer_q": whole(batch, heads, n_q, dim),
        "indexer_k": whole(batch, 1, n, dim),
        "indexer_w": whole(batch, heads, n_q),
    }


POOLED = {
    "exact": (exact, 1, True),
    "meanpool(8)": (mean_of(8), 8, False),
    "maxpool(exact, 8)": (max_of(exact, 8), 8, False),
    "maxpool(meanpool(4), 8)": (max_of(mean_of(4), 2), 8, False),
}


@BACKENDS
@pytest.mark.parametrize("share", ["head", "group", "query"])
@pytest.mark.parametrize("whole", [True, False], ids=["ties", "real"])
@pytest.mark.parametrize("text", POOLED)
def test_scores_of_queries_and_keys(backend, share, whole, text):
    scores, block, per_key = POOLED[text]
    q, k, _ = tensors(whole=whole)
    if "pool" in text and whole:
        q, k, _ = tensors(n=48, n_q=30, whole=True)  # whole blocks, whose means are exact
    got = mask_of(f"causal & topk({text}, 3, block={block}, share={share})", backend, q, k)
    assert torch.equal(got, expected(case_of(q, k), scores, causal, 3, block, share, per_key=per_key))


@BACKENDS
@pytest.mark.parametrize("block", [1, 4, 7])
@pytest.mark.parametrize("share", ["head", "group"])
def test_blocks_of_keys_that_are_scored(backend, block, share):
    q, k, _ = tensors(whole=True)
    got = mask_of(f"causal & window(20) & topk(exact, 2, block={block}, share={share})", backend, q, k)
    near = expected(case_of(q, k), exact, lambda q: range(max(0, q - 19), q + 1), 2, block, share, per_key=True)
    assert torch.equal(got, near)


@BACKENDS
@pytest.mark.parametrize("share", ["head", "group", "query"])
def test_lightning_indexer(backend, share):
    q, k, _ = tensors()
    inputs = indexer_inputs()
    got = mask_of(f"causal & topk(indexer(heads=3, dim=5), 6, share={share})", backend, q, k, **inputs)
    assert torch.equal(got, expected(case_of(q, k, inputs), lightning, causal, 6))
    named = {name.replace("indexer", "fast"): t for name, t in inputs.items()}
    again = mask_of("causal & topk(indexer(heads=3, dim=5, name=fast), 6)", backend, q, k, **named)
    assert torch.equal(got, again)
    in_blocks = mask_of("causal & topk(maxpool(indexer(3, 5), 8), 2, block=8)", backend, q, k, **inputs)
    assert torch.equal(in_blocks, expected(case_of(q, k, inputs), max_of(lightning, 8), causal, 2, 8))


@BACKENDS
@pytest.mark.parametrize("share", ["head", "group"])
@pytest.mark.parametrize(("l", "d", "block"), [(8, 4, 16), (4, 4, 8), (8, 2, 4), (6, 3, 3)])
def test_compressed_attention(backend, l, d, block, share):
    q, k, _ = tensors()
    text = f"causal & topk(compressed({l}, {d}), 2, block={block}, share={share})"
    got = mask_of(text, backend, q, k, scale=SCALE)
    assert torch.equal(got, expected(case_of(q, k, scale=SCALE), importance(l, d, block), causal, 2, block, share))


@BACKENDS
def test_compressed_keys_that_are_given(backend):
    q, k, _ = tensors()
    given = torch.randn(B, HKV, (N - 8) // 4 + 1, D, generator=torch.Generator().manual_seed(3))
    text = "causal & topk(compressed(8, 4, keys=learned), 2, block=16, share=group)"
    got = mask_of(text, backend, q, k, scale=SCALE, learned=given)
    want = expected(case_of(q, k, {"learned": given}, SCALE), importance(8, 4, 16, "learned"), causal, 2, 16, "group")
    assert torch.equal(got, want)


@BACKENDS
@pytest.mark.parametrize("share", ["head", "group"])
def test_a_log_sum_exp_that_is_given(backend, share):
    """The right one changes nothing; it weighs the heads of a group, so that another one does."""
    q, k, _ = tensors()
    given = torch.randn(B, HKV, (N - 8) // 4 + 1, D, generator=torch.Generator().manual_seed(3))
    ends = torch.arange(given.shape[2]) * 4 + 7
    scores = q @ given.repeat_interleave(H // HKV, 1).transpose(-1, -2) * SCALE
    lse = torch.logsumexp(scores.masked_fill(ends > torch.arange(N)[-q.shape[2] :, None], -torch.inf), -1)
    text = f"causal & topk(compressed(8, 4, keys=learned, lse=left), 2, block=16, share={share})"
    want = mask_of(text.replace(", lse=left", ""), backend, q, k, scale=SCALE, learned=given)
    assert torch.equal(mask_of(text, backend, q, k, scale=SCALE, learned=given, left=lse), want)
    other = lse + 3.0 * torch.arange(H)[:, None]
    same = torch.equal(mask_of(text, backend, q, k, scale=SCALE, learned=given, left=other), want)
    assert same == (share == "head")


FORCED = {
    "self": (lambda q: [q], 1),
    "sinks(2) | window(3)": (lambda q: [0, 1, *range(max(0, q - 2), q + 1)], 1),
    "full": (lambda q: range(48), 1),
    "none": (lambda q: [], 1),
    "chunk(8)": (lambda q: range(q // 8 * 8, q // 8 * 8 + 8), 8),
    "where(k == q - 5)": (lambda q: [q - 5] if q >= 5 else [], 8),
}


@BACKENDS
@pytest.mark.parametrize("k", [1, 3, 6, 100])
@pytest.mark.parametrize("text", FORCED)
def test_forced_keys_count_towards_k(backend, text, k):
    force, block = FORCED[text]
    q, keys, _ = tensors(whole=True, n=48)
    scorer, scores = ("exact", exact) if block == 1 else ("meanpool(8)", mean_of(8))
    got = mask_of(f"causal & topk({scorer}, {k}, block={block}, force={text})", backend, q, keys)
    assert torch.equal(got, expected(case_of(q, keys), scores, causal, k, block, force=force))


@BACKENDS
@pytest.mark.parametrize("share", ["head", "group", "query"])
@pytest.mark.parametrize("heads", [1, HKV, H])
def test_scores_that_are_given_are_shared_and_forced(backend, share, heads):
    q, k, _ = tensors()
    table = torch.randint(0, 5, (B, heads, NQ, N), generator=torch.Generator().manual_seed(1)).float()

    def given(case, b, h, i):
        return table[b, h // (H // heads), i].tolist()

    for scores in (table, lambda start, stop: table[:, :, start:stop]):
        got = mask_of(f"causal & topk(s, 4, share={share}, force=self)", backend, q, k, s=scores)
        assert torch.equal(got, expected(case_of(q, k), given, causal, 4, 1, share, lambda q: [q]))


@BACKENDS
def test_nan_and_infinite_scores(backend):
    q, k, _ = tensors()
    table = torch.randint(0, 3, (1, 1, NQ, N), generator=torch.Generator().manual_seed(1)).float()
    noise = torch.rand(table.shape, generator=torch.Generator().manual_seed(2))
    table[noise < 0.5], table[noise > 0.8], table[(noise > 0.7) & (noise < 0.8)] = -INF, math.nan, INF
    table[:, :, 3], table[:, :, 4] = math.nan, -INF

    def given(case, b, h, i):
        return table[0, 0, i].tolist()

    for k_, text in ((4, ""), (100, ""), (4, ", force=window(2)")):
        force = (lambda q: [q - 1, q]) if text else (lambda q: ())
        got = mask_of(f"causal & topk(s, {k_}{text})", backend, q, k, s=table)
        assert torch.equal(got, expected(case_of(q, k), given, causal, k_, force=force))


@BACKENDS
def test_nan_queries_pick_nothing_but_what_is_forced(backend):
    q, k, v = tensors()
    q[0, 0, 5] = math.nan
    module = operator.module_of("causal & topk(exact, 3, force=self)", 0, "torch", q, v)
    (chosen,) = module.selections(q, k, {})
    assert (chosen[0, 0, 5] == -1).all()
    assert (chosen[0, 1, 5] >= 0).any()
    assert backend


@BACKENDS
def test_packed_documents(backend):
    q, k, _ = tensors(whole=True)
    ids = torch.tensor([0] * 7 + [1] * 20 + [2] * 18)
    first = [0] * 7 + [7] * 20 + [27] * 18

    def own(q):
        return range(first[q], q + 1)

    text = "causal & document(ids) & topk(exact, 3, force=self | sinks(1))"
    got = mask_of(text, backend, q, k, ids=ids)
    assert torch.equal(got, expected(case_of(q, k), exact, own, 3, force=lambda q: [0, q]))
    got = mask_of("causal & document(ids) & topk(exact, 2, block=8, share=group, force=chunk(8))", backend, q, k, ids=ids)
    want = expected(case_of(q, k), exact, own, 2, 8, "group", lambda q: range(q // 8 * 8, q // 8 * 8 + 8), per_key=True)
    assert torch.equal(got, want)


@BACKENDS
@pytest.mark.parametrize("n", [1, 3, 8, 9])
def test_short_sequences(backend, n):
    q, k, _ = tensors(n=n, n_q=n)
    for text in (
        "causal & topk(exact, 9)",
        "causal & topk(meanpool(4), 3, block=4)",
        "causal & topk(compressed(4, 2), 3, block=4)",
    ):
        assert torch.equal(mask_of(text, backend, q, k), torch.ones(n, n).tril().bool().expand(B, H, n, n))


def test_a_short_context_runs_without_a_selection(monkeypatch):
    q, k, v = tensors(n=16, n_q=16)
    ids = torch.tensor([0] * 7 + [1] * 9)
    text = "(causal & document(ids) & topk(exact, 16)) | (sinks(2) & causal & topk(meanpool(4), 4, block=4))"
    want = pc.compile("causal & (document(ids) | sinks(2))", backend="torch")(q, k, v, ids=ids)
    long = pc.compile(text.replace("16", "15"), backend="torch")(q, k, v, ids=ids)
    monkeypatch.setattr(operator, "select", None)
    found = operator.module_of

    def checked(program, *rest):
        assert "topk" not in program
        return found(program, *rest)

    monkeypatch.setattr(operator, "module_of", checked)
    assert torch.equal(pc.compile(text, backend="torch")(q, k, v, ids=ids), want)
    assert not torch.equal(long, want)
    with pytest.raises((TypeError, AssertionError)):
        pc.compile(text.replace("16", "15"), backend="torch")(q, k, v, ids=ids)
    with pytest.raises((TypeError, AssertionError)):  # scores that are given may be -inf
        pc.compile("causal & topk(s, 16)", backend="torch")(q, k, v, s=torch.zeros(1, 1, 16, 16))


@BACKENDS
def test_selections_beside_each_other(backend):
    """Both pick what is read; forced keys of one must be picked by the other; draws come first."""
    q, k, _ = tensors(whole=True)
    table = torch.randint(0, 5, (1, 1, NQ, N), generator=torch.Generator().manual_seed(1)).float()

    def given(case, b, h, i):
        return table[0, 0, i].tolist()

    case = case_of(q, k)
    one = expected(case, exact, causal, 4, force=lambda q: [0, q])
    two = expected(case, given, causal, 9, force=lambda q: [q])
    text = "causal & topk(exact, 4, force=sinks(1) | self) & topk(s, 9, force=self)"
    assert torch.equal(mask_of(text, backend, q, k, s=table), one & two)
    drawn = pc.parse("causal & random(12)").mask(N)
    got = mask_of("causal & random(12) & topk(exact, 1, force=window(9))", backend, q, k)
    want = expected(case, exact, lambda q: drawn[q].nonzero()[0].tolist(), 1, force=lambda q: range(max(0, q - 8), q + 1))
    assert torch.equal(got[:, 0], want[:, 0])


@pytest.mark.parametrize(
    "text",
    [
        "causal & topk(exact, 5)",
        "causal & topk(meanpool(4), 3, block=4, share=group, force=chunk(4))",
        "causal & topk(indexer(3, 5), 6)",
        "causal & topk(compressed(8, 4), 2, block=8, share=group, force=sinks(8))",
    ],
)
def test_rows_go_in_chunks(text, monkeypatch):
    """The memory decides how many rows are scored at a time, and nothing else."""
    q, k, v = tensors(whole=True, n=48)
    inputs = indexer_inputs(n=48) if "indexer" in text else {}
    module = operator.module_of(text, 0, "torch", q, v)
    whole = module.selections(q, k, inputs)
    asked = []
    scorer = next(name for name in ("Exact", "MeanPool", "Indexer", "Compressed") if name.lower()[:5] in text)
    rows = getattr(module, scorer).rows

    def noted(self, sight):
        found = rows(self, sight)
        return lambda start, stop: asked.append((start, stop)) or found(start, stop)

    monkeypatch.setattr(getattr(module, scorer), "rows", noted)
    heads = 1 if scorer == "Indexer" else H
    for memory, most in ((1, 1), (B * heads * 48 * 7, 7)):
        asked.clear()
        monkeypatch.setattr(module.select, "__defaults__", (memory,))
        assert all(torch.equal(a, b) for a, b in zip(whole, module.selections(q, k, inputs), strict=True))
        assert [start for start, _ in asked] == list(range(0, NQ, most))
    monkeypatch.setattr(module.select, "__defaults__", (1 << 26,))
    asked.clear()
    short = {name: t[:, :, -4:] for name, t in inputs.items()}
    module.selections(q[:, :, -4:], k[:, :, -4:], short)
    assert asked == []  # all candidates are among the best


def test_heads_that_pick_alike_share_a_list():
    q, k, v = tensors()
    for share, shape in (("head", (B, H)), ("group", (B, H)), ("query", (B, 1))):
        module = operator.module_of(f"causal & topk(exact, 5, share={share})", 0, "torch", q, v)
        (chosen,) = module.selections(q, k, {})
        assert chosen.shape == (*shape, NQ, 5)
        assert module.selection_shapes(q, k, {}) == [chosen.shape]
    module = operator.module_of("causal & topk(indexer(3, 5), 5)", 0, "torch", q, v)
    (chosen,) = module.selections(q, k, indexer_inputs())
    assert chosen.shape == (B, 1, NQ, 5)
    assert module.selection_shapes(q, k, indexer_inputs()) == [chosen.shape]


@BACKENDS
@pytest.mark.parametrize(
    "text",
    [
        "causal & topk(exact, 5, share=group, force=self)",
        "causal & topk(meanpool(8), 2, block=8, force=chunk(8))",
        "causal & (window(4) | topk(compressed(8, 4), 2, block=8, share=group, force=sinks(8) | blocks(8, 1, 0)))",
        "heads((causal & topk(exact, 3, share=query)) + (causal & topk(meanpool(8), 2, block=8)))",
    ],
)
def test_gradients(backend, text):
    """Those of dense attention under the mask; none goes through the selection."""
    from patternc.testing import assert_matches_dense

    q, k, v = tensors()
    assert_matches_dense(text, q, k, v, backend=backend)


def test_autocast_does_not_round_scores():
    q, k, v = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        out = pc.compile("causal & topk(exact, 5)", backend="torch")(q, k, v)
    again = pc.compile("causal & topk(exact, 5)", backend="torch")(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert torch.equal(out, again)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"indexer_q": None}, ValueError, "needs the runtime input 'indexer_q'"),
        ({"indexer_q": torch.zeros(B, 3, NQ, 4)}, ValueError, "'indexer_q' must have shape"),
        ({"indexer_k": torch.zeros(B, 1, NQ, 5)}, ValueError, "'indexer_k' must have shape"),
        ({"indexer_w": torch.zeros(B, 3, NQ, dtype=torch.int64)}, TypeError, "'indexer_w' must be floating point"),
        ({"indexer_w": [1.0]}, TypeError, "'indexer_w' must be a tensor"),
        ({"indexer": torch.zeros(1)}, TypeError, "no runtime input 'indexer'"),
    ],
)
def test_wrong_inputs(changes, error, message):
    q, k, v = tensors()
    inputs = {name: t for name, t in {**indexer_inputs(), **changes}.items() if t is not None}
    with pytest.raises(error, match=message):
        pc.compile("causal & topk(indexer(3, 5), 6)", backend="torch")(q, k, v, **inputs)
