"""Training of what selects keys, against dense computations written from the equations, row by row."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.testing import dense_mask, oracle_mask

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402 - needs torch
from torch.utils._pytree import tree_leaves  # noqa: E402

from patternc.selection import attention_mass, indexer_kl, indexer_scores, selected  # noqa: E402

PATTERNS = [
    None,
    "full",
    "none",
    "causal - self",
    "window(3)",
    "causal & stride(3) & rows([2..9])",
    "causal & document(ids)",
    "~document(ids)",
    "causal & layout(t, 4) | self",
]


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tensors(n, n_q, batch=1, heads=4, kv_heads=2, own=2, dim=3, own_dim=2, dtype=torch.float64, seed=0):
    """q_idx, k_idx, w, q, k."""
    shapes = [(own, n_q, own_dim), (1, n, own_dim), (own, n_q), (heads, n_q, dim), (kv_heads, n, dim)]
    return [normal(seed + i, batch, *shape, dtype=dtype) for i, shape in enumerate(shapes)]


def inputs_of(pattern, n, batch=1, seed=0):
    found = {}
    generator = torch.Generator().manual_seed(seed)
    if "ids" in (pattern or ""):
        found["ids"] = (torch.rand(batch, n, generator=generator) < 0.3).cumsum(-1)
    if "layout" in (pattern or ""):
        side = -(-n // 4)
        found["t"] = torch.rand(batch, 1, side, side, generator=generator) < 0.5
    return found


def lists_of(n, n_q, width, batch=1, seed=0):
    """Distinct keys for each query in any order, with -1 anywhere among them and some rows empty."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.full((batch, n_q, width), -1, dtype=torch.int32)
    for b in range(batch):
        for t in range(n_q):
            count = int(torch.randint(0, min(n, width) + 1, (), generator=generator))
            places = torch.randperm(width, generator=generator)[:count]
            found[b, t, places] = torch.randperm(n, generator=generator)[:count].int()
    return found


def mask_of_lists(indices, batch, n):
    found = torch.zeros(batch, indices.shape[1], n, dtype=torch.bool)
    for b in range(batch):
        for t, keys in enumerate(indices[b % len(indices)].tolist()):
            found[b, t, [key for key in keys if key >= 0]] = True
    return found


def rows_of(q_idx, k_idx, w, q, k, mask, lse=None, scale=None):
    """(b, t, keys, their scores, their attention summed over heads) for each query, by the definitions."""
    heads, sharing = q.shape[1], q.shape[1] // k.shape[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    for b in range(q.shape[0]):
        for t in range(q.shape[2]):
            keys = mask[b, t].nonzero()[:, 0]
            scores = sum(w[b, h, t] * torch.relu(k_idx[b, 0, keys] @ q_idx[b, h, t]) for h in range(q_idx.shape[1]))
            mass = torch.zeros(len(keys), dtype=q.dtype)
            for h in range(heads):
                logits = scale * (k[b, h // sharing, keys] @ q[b, h, t])
                if lse is None:
                    mass = mass + torch.softmax(logits, 0)
                elif lse[b, h, t] > -torch.inf:
                    mass = mass + torch.exp(logits - lse[b, h, t])
            yield b, t, keys, scores, mass


def divergence(*args, **kwargs):
    """D_KL(p || softmax(I)) for each query."""
    q, none = args[3], 0 * sum(t.sum() for t in args[:3])
    loss = [[none] * q.shape[2] for _ in range(q.shape[0])]
    for b, t, keys, scores, mass in rows_of(*args, **kwargs):
        if len(keys) and mass.sum() > 0:
            p = (mass / mass.sum()).detach()
            loss[b][t] = torch.nn.functional.kl_div(torch.log_softmax(scores, 0), p, reduction="sum")
    return torch.stack([torch.stack(row) for row in loss])


def with_gradients(run, leaves, weights):
    leaves = [t.clone().requires_grad_() for t in leaves]
    loss = run(*leaves)
    grads = torch.autograd.grad(loss, leaves, weights, materialize_grads=True)
    return [loss.detach(), *grads]


def close(got, wanted, tolerance=1e-10):
    for mine, ref in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, ref, rtol=tolerance, atol=tolerance)


sizes = st.tuples(st.integers(1, 18), st.integers(1, 18)).map(lambda pair: (max(pair), min(pair)))
heads = st.sampled_from([(4, 2), (4, 4), (3, 1), (1, 1)])
budgets = st.sampled_from([1, 3000, 1 << 28])


@settings(max_examples=120, deadline=None)
@given(sizes, st.integers(1, 2), heads, st.sampled_from(PATTERNS), budgets, st.sampled_from([None, "same", "other"]), st.data())
def test_divergence_over_a_pattern(size, batch, heads, pattern, memory, kind, data):
    n, n_q = size
    seed = data.draw(st.integers(0, 5))
    *own, q, k = tensors(n, n_q, batch, *heads, seed=seed)
    inputs = inputs_of(pattern, n, batch, seed)
    mask = dense_mask(pattern or "causal", 1, n_q, n, batch=batch, **inputs)[:, 0]
    lse = None
    if kind == "same":
        every = (q.unflatten(1, (heads[1], -1)) @ k[:, :, None].transpose(-1, -2)).flatten(1, 2) * 0.7
        lse = every.masked_fill(~mask[:, None], -torch.inf).logsumexp(-1)
    elif kind == "other":  # of attention to more keys: on these there may be no mass at all
        lse = normal(9, batch, heads[0], n_q)
        lse[0, :, 0] = data.draw(st.sampled_from([0.0, 1e4, -torch.inf]))
    weights = normal(7, batch, n_q)
    scale = data.draw(st.sampled_from([None, 0.7])) if kind != "same" else 0.7
    run = partial(indexer_kl, q=q, k=k, pattern=pattern, lse=lse, scale=scale, memory=memory, **inputs)
    got = with_gradients(run, own, weights)
    close(got, with_gradients(lambda *own: divergence(*own, q, k, mask, lse=lse, scale=scale), own, weights))
    assert bool((got[0] >= -1e-12).all())


@settings(max_examples=120, deadline=None)
@given(sizes, st.integers(1, 2), heads, st.integers(0, 7), budgets, st.booleans(), st.booleans(), st.integers(0, 5))
def test_divergence_over_lists(size, batch, heads, width, memory, shared, given_lse, seed):
    n, n_q = size
    *own, q, k = tensors(n, n_q, batch, *heads, seed=seed)
    indices = lists_of(n, n_q, width, 1 if shared else batch, seed)
    mask = mask_of_lists(indices, batch, n)
    lse = normal(9, batch, heads[0], n_q) if given_lse else None
    weights = normal(7, batch, n_q)
    run = partial(indexer_kl, q=q, k=k, indices=indices, lse=lse, memory=memory)
    got = with_gradients(run, own, weights)
    close(got, with_gradients(lambda *own: divergence(*own, q, k, mask, lse=lse), own, weights))


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_by_differences(sparse):
    *own, q, k = tensors(9, 7, 2)
    indices = lists_of(9, 7, 4, 2) if sparse else None
    leaves = [t.requires_grad_() for t in own]
    assert torch.autograd.gradcheck(lambda *own: indexer_kl(*own, q, k, indices=indices, memory=2000), leaves)


def test_no_gradient_reaches_attention_and_none_is_differentiated_twice():
    own_and_others = [t.requires_grad_() for t in tensors(5, 5)]
    loss = indexer_kl(*own_and_others).sum()
    *grads, dq, dk = torch.autograd.grad(loss, own_and_others, allow_unused=True, create_graph=True)
    assert dq is dk is None
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grads[0].sum(), own_and_others[0])


def test_the_lists_of_all_causal_keys_are_the_pattern():
    n = 11
    arguments = tensors(n, n)
    indices = torch.arange(n).expand(n, n).masked_fill(torch.arange(n) > torch.arange(n)[:, None], -1)[None]
    close([indexer_kl(*arguments, indices=indices)], [indexer_kl(*arguments)])


def test_a_perfect_indexer_has_no_divergence():
    """One head of attention that an indexer reproduces: w relu(q . k) with everything positive."""
    q, k = (normal(i, 2, 1, 8, 4).abs() for i in range(2))
    ones = torch.ones(2, 1, 8, dtype=q.dtype)
    leaves = [t.requires_grad_() for t in (q.clone(), k.clone(), ones)]
    loss = indexer_kl(*leaves, q, k, scale=1.0)
    assert loss.abs().max() < 1e-14
    assert all(g.abs().max() < 1e-14 for g in torch.autograd.grad(loss.sum(), leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_summed_in_float32(dtype):
    arguments = tensors(40, 30, dtype=dtype)
    weights = torch.ones(1, 30)
    run = partial(indexer_kl, q=arguments[3], k=arguments[4], memory=1 << 16)
    got = with_gradients(run, arguments[:3], weights)
    assert got[0].dtype == torch.float32
    assert [g.dtype for g in got[1:]] == [dtype] * 3
    wide = [t.double() for t in arguments]
    exact = with_gradients(partial(indexer_kl, q=wide[3], k=wide[4]), wide[:3], weights.double())
    assert (got[0] - exact[0]).abs().max() < 2e-6
    for mine, ref in zip(got[1:], exact[1:], strict=True):
        assert (mine - ref).abs().max() <= 4 * torch.finfo(dtype).eps * ref.abs().max()


def test_autocast_changes_nothing():
    arguments = tensors(20, 20, dtype=torch.float32)
    plain = with_gradients(partial(indexer_kl, q=arguments[3], k=arguments[4]), arguments[:3], torch.ones(1, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = with_gradients(partial(indexer_kl, q=arguments[3], k=arguments[4]), arguments[:3], torch.ones(1, 20))
        assert indexer_scores(*arguments[:3]).dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


# Scores and mass


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 2), st.integers(1, 3), st.data())
def test_scores(size, batch, own, data):
    n, n_q = size
    q_idx, k_idx, w, *_ = tensors(n, n_q, batch, own=own)
    start = data.draw(st.integers(0, n_q))
    stop = data.draw(st.integers(start, n_q))
    got = indexer_scores(q_idx, k_idx, w, start, stop)
    assert got.shape == (batch, 1, stop - start, n)
    for b in range(batch):
        for t in range(start, stop):
            for s in range(n):
                dots = [float(q_idx[b, h, t] @ k_idx[b, 0, s]) for h in range(own)]
                wanted = sum(float(w[b, h, t]) * max(0.0, dot) for h, dot in enumerate(dots))
                assert abs(float(got[b, 0, t - start, s]) - wanted) < 1e-12


def test_gradients_of_scores_by_differences():
    leaves = [t.requires_grad_() for t in tensors(6, 4, 2)[:3]]
    assert torch.autograd.gradcheck(partial(indexer_scores, start=1, stop=3), leaves)


def test_scores_are_those_of_attention_gym():
    indexer = pytest.importorskip("attn_gym.sparse.indexer", reason="attn_gym is not installed")
    q_idx, k_idx, w, *_ = tensors(50, 50, 2, own=4, own_dim=16, dtype=torch.float32)
    moved = q_idx.transpose(1, 2).contiguous(), k_idx[:, 0], w.transpose(1, 2).contiguous()
    theirs = indexer.lightning_indexer(*moved, topk=7, causal=True, impl="reference")
    call = normal(5, 2, 2, 50, 8, dtype=torch.float32)
    attention = pc.compile("causal & topk(indexer, 7)")
    ours = selected(attention, call, call, call, indexer=partial(indexer_scores, q_idx, k_idx, w))
    scores = indexer_scores(q_idx, k_idx, w)[:, 0]
    assert torch.equal((ours >= 0).sum(-1), (theirs >= 0).sum(-1))
    best = [scores.gather(2, list_.long().clamp(min=0)).masked_fill(list_ < 0, -9).sort(-1).values for list_ in (ours, theirs)]
    assert torch.allclose(*best, rtol=1e-5, atol=1e-5)  # of equal scores (0 is common) theirs takes other keys


def test_selection_is_that_of_transformers(monkeypatch):
    """The scores that DeepSeek-V3.2's indexer computes, seen where it takes the best of them."""
    pytest.importorskip("transformers")
    modeling = pytest.importorskip("transformers.models.deepseek_v32.modeling_deepseek_v32")
    configuration = pytest.importorskip("transformers.models.deepseek_v32.configuration_deepseek_v32")
    config = configuration.DeepseekV32Config(
        hidden_size=32, index_n_heads=4, index_head_dim=16, index_topk=5, q_lora_rank=24, qk_rope_head_dim=8
    )
    torch.manual_seed(0)
    module = modeling.DeepseekV32Indexer(config, 0)
    n = 20
    hidden, residual = normal(0, 2, n, 32, dtype=torch.float32), normal(1, 2, n, 24, dtype=torch.float32)
    unrotated = torch.ones(2, n, 8), torch.zeros(2, n, 8)
    mask = torch.ones(n, n, dtype=torch.bool).tril()[None]
    theirs = module(hidden, residual, unrotated, mask, None)
    q_idx = module.wq_b(residual).view(2, n, 4, 16).transpose(1, 2)
    k_idx = module.k_norm(module.wk(hidden))[:, None]
    w = module.weights_proj(hidden).transpose(1, 2) * (4 * 16) ** -0.5
    scores = indexer_scores(q_idx, k_idx, w).masked_fill(~mask, -torch.inf)[:, 0]
    ours = scores.topk(5).indices
    full = torch.arange(n) >= 4  # rows with fewer keys are filled with keys that the mask excludes
    assert torch.equal(ours[:, full].sort(-1).values, theirs[:, full].long().sort(-1).values)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 2), heads, st.sampled_from(PATTERNS), budgets, st.booleans(), st.data())
def test_mass_over_a_pattern(size, batch, heads, pattern, memory, given_lse, data):
    n, n_q = size
    arguments = tensors(n, n_q, batch, *heads)
    inputs = inputs_of(pattern, n, batch)
    lse = normal(9, batch, heads[0], n_q) if given_lse else None
    if given_lse:
        lse[:, 0, 0] = -torch.inf
    start = data.draw(st.integers(0, n_q))
    stop = data.draw(st.integers(start, n_q))
    got = attention_mass(*arguments[3:], start, stop, pattern=pattern, lse=lse, memory=memory, **inputs)
    mask = dense_mask(pattern or "causal", 1, n_q, n, batch=batch, **inputs)[:, 0]
    wanted = torch.zeros(batch, 1, n_q, n, dtype=torch.float64)
    for b, t, keys, _, mass in rows_of(*arguments, mask, lse):
        wanted[b, 0, t, keys] = mass
    close([got], [wanted[:, :, start:stop]])


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 2), heads, st.integers(1, 6), budgets, st.integers(0, 5))
def test_mass_over_lists(size, batch, heads, width, memory, seed):
    n, n_q = size
    arguments = tensors(n, n_q, batch, *heads)
    indices = lists_of(n, n_q, width, batch, seed)
    got = attention_mass(*arguments[3:], indices=indices, memory=memory)
    spread = torch.zeros(batch, n_q, n + 1, dtype=got.dtype).scatter_add(2, indices.long() % (n + 1), got[:, 0])
    wanted = torch.zeros(batch, n_q, n + 1, dtype=got.dtype)
    for b, t, keys, _, mass in rows_of(*arguments, mask_of_lists(indices, batch, n)):
        wanted[b, t, keys] = mass
    close([spread], [wanted])
    assert bool((got[:, 0][indices.expand(batch, -1, -1) < 0] == 0).all())


def test_the_share_that_a_selection_catches_and_the_best_one():
    q, k = tensors(32, 32, heads=4, kv_heads=2)[3:]
    _, lse = pc.attention(q, k, k, "causal", return_lse=True)
    shares = {}
    for name, scores in {"best": partial(attention_mass, q, k), "any": lambda a, b: normal(3, 1, 1, 32, 32)[:, :, a:b]}.items():
        indices = selected(pc.compile("causal & topk(s, 8)"), q, k, k, s=scores)
        shares[name] = attention_mass(q, k, indices=indices, lse=lse).sum(-1) / 4
    assert torch.allclose(shares["best"][..., :8], torch.ones(1, 1, 8, dtype=q.dtype))  # fewer keys than are taken
    assert bool((shares["best"] <= 1 + 1e-12).all())
    assert bool((shares["best"] >= shares["any"] - 1e-12).all())
    best = attention_mass(q, k).topk(8).values.sum(-1) / 4
    assert torch.allclose(shares["best"], best)


@pytest.mark.parametrize(
    "text", ["causal & topk(s, 5)", "causal & document(ids) & topk(s, 5)", "sinks(2) | topk(s, 2, block=3)"]
)
def test_selected_keys_are_those_that_are_read(text):
    batch, n, n_q, heads = 2, 20, 12, 1 if "ids" in text else 4
    q, k = torch.zeros(batch, heads, n_q, 8), torch.zeros(batch, 1, n, 8)
    v = torch.eye(n).expand(batch, 1, n, n)
    scores = normal(0, batch, 1, n_q, n, dtype=torch.float32)
    inputs = {"ids": torch.arange(n) // 7} if "ids" in text else {}
    indices = selected(pc.compile(text), q, k, v, s=scores, **inputs)
    read = pc.compile(text)(q, k, v, s=scores, **inputs) > 0
    held = mask_of_lists(indices, batch, n)
    if "sinks" in text:
        assert not held[..., :2].any()
        held[..., :2] = True
    assert torch.equal(held[:, None].expand_as(read), read)
    for b in range(batch):
        rows = torch.cat([torch.zeros(n - n_q, n), scores[b, 0]]).numpy()
        mask = oracle_mask(text, n, s=rows, **{name: t.numpy() for name, t in inputs.items()})
        assert torch.equal(torch.from_numpy(mask[n - n_q :]), held[b])


# Memory


class Held(TorchDispatchMode):
    """The most bytes that tensors made meanwhile hold at once."""

    def __init__(self):
        super().__init__()
        self.now, self.most = 0, 0
        self._known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        import weakref

        found = function(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(found):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in before and key not in self._known:
                    self._known.add(key)
                    self.now += size
                    weakref.finalize(storage, self._free, key, size)
        self.most = max(self.most, self.now)
        return found

    def _free(self, key, size):
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize("kind", ["pattern", "lists"])
def test_memory_is_what_was_allowed(kind):
    n, memory = 2048, 1 << 21
    arguments = tensors(n, n, heads=4, kv_heads=2, own=2, dim=16, own_dim=8, dtype=torch.float32)
    indices = lists_of(n, n, 40) if kind == "lists" else None
    leaves = [t.requires_grad_() for t in arguments[:3]]
    with Held() as held:
        loss = indexer_kl(*leaves, *arguments[3:], indices=indices, memory=memory)
        torch.autograd.grad(loss.sum(), leaves)
    linear = sum(t.nbytes for t in arguments) * 3
    assert memory / 8 < held.most <= memory + linear
    assert held.most < n * n * 4 / 2


# What does not fit


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"q_idx": torch.zeros(1, 2, 5)}, ValueError, "q_idx must have 4 axes"),
        ({"k_idx": torch.zeros(1, 2, 6, 3)}, ValueError, "one head for all queries"),
        ({"w": torch.zeros(1, 2, 6)}, ValueError, "one weight for each head"),
        ({"w": torch.zeros(1, 2, 5, dtype=torch.float64)}, TypeError, "one floating-point dtype"),
        ({"q": torch.zeros(1, 4, 4, 8)}, ValueError, "they must be equal"),
        ({"lse": torch.zeros(1, 4, 6)}, ValueError, "lse must have shape"),
        ({"lse": 1.0}, TypeError, "lse must be a floating-point tensor"),
        ({"indices": torch.zeros(1, 5, 2)}, TypeError, "integers"),
        ({"indices": torch.zeros(1, 4, 2, dtype=torch.int32)}, ValueError, "indices must have shape"),
        ({"indices": torch.zeros(1, 5, 2, dtype=torch.int32), "pattern": "causal"}, ValueError, "pass no pattern"),
        ({"pattern": "causal & topk(s, 3)"}, ValueError, "as indices"),
        ({"pattern": "heads(causal + full)"}, ValueError, "heads that differ"),
        ({"pattern": "causal & document(ids)"}, ValueError, "pass ids="),
        ({"ids": torch.zeros(6)}, TypeError, "no runtime input 'ids'"),
    ],
)
def test_refusals(change, error, match):
    names = ("q_idx", "k_idx", "w", "q", "k")
    shapes = [(1, 2, 5, 3), (1, 1, 6, 3), (1, 2, 5), (1, 4, 5, 8), (1, 2, 6, 8)]
    arguments = {name: torch.zeros(shape) for name, shape in zip(names, shapes, strict=True)}
    indexer_kl(**arguments)
    with pytest.raises(error, match=match):
        indexer_kl(**{**arguments, **change})


def test_rows_that_there_are_not():
    q_idx, k_idx, w, *_ = tensors(6, 5)
    for start, stop in ((0, 6), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="not within the 5 queries"):
            indexer_scores(q_idx, k_idx, w, start, stop)


@pytest.mark.parametrize(
    ("text", "names", "heads"),
    [
        ("causal", "", 1),
        ("topk(s, 2) | causal & topk(t, 2)", "st", 1),
        ("causal & random(4) & topk(s, 2)", "s", 1),
        ("heads((causal & topk(s, 2)) + causal)", "s", 1),
        ("causal & topk(s, 2)", "s", 2),
    ],
)
def test_selected_wants_one_selection_for_all_heads(text, names, heads):
    q = torch.zeros(1, 2, 20, 4)
    with pytest.raises(ValueError, match="one selection, the same for all heads"):
        selected(pc.compile(text), q, q, q, **{name: normal(0, 1, heads, 20, 20) for name in names})
