"""Misuse is refused with the documented type and a message that names the argument, what it got and what it wants."""

import numpy as np
import pytest

import patternc as pc

torch = pytest.importorskip("torch")


def t(*shape, **options):
    return torch.zeros(*shape, **options)


Q, K = t(1, 4, 8, 16), t(1, 2, 8, 16)
IDS, TABLE, SCORES = "causal & document(ids)", "layout(t, 4)", "topk(s, 2)"

CALLS = {
    "no tensor": ({"q": np.zeros((1, 4, 8, 16))}, TypeError, "q must be a tensor, got ndarray"),
    "too few axes": ({"q": t(4, 8, 16)}, ValueError, "q must have shape (batch, heads, length, head_dim), got (4, 8, 16)"),
    "dtypes": ({"k": K.half()}, TypeError, "k is torch.float16 and q is torch.float32; they must have one dtype"),
    "devices": ({"v": K.to("meta")}, ValueError, "v is on meta and q on cpu; they must be on one device"),
    "integers": ({"q": Q.int(), "k": K.int(), "v": K.int()}, TypeError, "q must be floating point, got torch.int32"),
    "batches": (
        {"k": t(2, 2, 8, 16), "v": t(2, 2, 8, 16)},
        ValueError,
        "q, k and v must have one batch size, got 1, 2 and 2",
    ),
    "lengths": (
        {"v": t(1, 2, 7, 16)},
        ValueError,
        "k and v must have the same heads and length, got (1, 2, 8, 16) and (1, 2, 7, 16)",
    ),
    "key heads": (
        {"v": t(1, 4, 8, 16)},
        ValueError,
        "k and v must have the same heads and length, got (1, 2, 8, 16) and (1, 4, 8, 16)",
    ),
    "head dims": ({"k": t(1, 2, 8, 8)}, ValueError, "q and k must have one head_dim, got 16 and 8"),
    "no head dim": (
        {"q": t(1, 2, 8, 0), "k": t(1, 2, 8, 0)},
        ValueError,
        "q must have a head_dim of at least 1, got 0",
    ),
    "groups": (
        {"k": t(1, 3, 8, 16), "v": t(1, 3, 8, 16)},
        ValueError,
        "the 4 query heads must be a multiple of the 3 key heads",
    ),
    "more queries than keys": (
        {"k": t(1, 2, 7, 16), "v": t(1, 2, 7, 16)},
        ValueError,
        "there are 8 queries and 7 keys; queries are the last positions, so at most as many",
    ),
    "too long": (
        {"q": t(1, 1, 1, 1), "k": t(1, 1, 1, 1).expand(1, 1, 1 << 25, 1), "v": t(1, 1, 1, 1).expand(1, 1, 1 << 25, 1)},
        ValueError,
        "k has 33,554,432 positions; the limit is 16,777,216",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_tensors_that_do_not_fit(case):
    change, kind, message = CALLS[case]
    with pytest.raises(kind) as caught:
        pc.compile("causal", backend="torch")(**{"q": Q, "k": K, "v": K, **change})
    assert str(caught.value) == message


INPUTS = {
    "missing": (IDS, {}, ValueError, "the pattern needs the runtime input 'ids': pass ids=..."),
    "none wanted": ("causal", {"ids": t(8)}, TypeError, "the pattern has no runtime input 'ids'; it has none"),
    "misspelt": (IDS, {"idz": t(8)}, TypeError, "the pattern has no runtime input 'idz'; did you mean 'ids'?"),
    "far off": (IDS, {"mask": t(8)}, TypeError, "the pattern has no runtime input 'mask'; its inputs are ids"),
    "list": (IDS, {"ids": [0] * 8}, TypeError, "'ids' must be a tensor, got list"),
    "array": (TABLE, {"t": np.ones((2, 2))}, TypeError, "'t' must be a tensor, got ndarray"),
    "callable ids": (IDS, {"ids": lambda start, stop: t(8)}, TypeError, "'ids' must be a tensor, got function"),
    "float ids": (IDS, {"ids": t(8)}, TypeError, "'ids' must hold integers (document ids or cu_seqlens), got torch.float32"),
    "ids of another batch": (
        IDS,
        {"ids": t(3, 8, dtype=torch.int32)},
        ValueError,
        "'ids' must be document ids of shape (8,) or (1, 8), or 1-D cu_seqlens, got (3, 8)",
    ),
    "ids elsewhere": (
        IDS,
        {"ids": t(8, dtype=torch.int32, device="meta")},
        ValueError,
        "'ids' is on meta and q on cpu; they must be on one device",
    ),
    "table of another size": (
        TABLE,
        {"t": t(3, 3)},
        ValueError,
        "'t' must have shape (1 or 1, 4 or 1, 2, 2), leading axes optional: 2 blocks of 4 for 8 keys; got (1, 1, 3, 3)",
    ),
    "scores of another head count": (
        SCORES,
        {"s": t(1, 3, 8, 8)},
        ValueError,
        "'s' must have shape (1 or 1, 4 or 1, 8, 8), got (1, 3, 8, 8)",
    ),
    "scores without leading axes": (
        SCORES,
        {"s": t(8, 8)},
        ValueError,
        "'s' must have shape (1 or 1, 4 or 1, 8, 8), got (8, 8)",
    ),
    "block scores": (
        "topk(s, 2, block=4)",
        {"s": t(1, 1, 8, 3)},
        ValueError,
        "'s' must have shape (1 or 1, 4 or 1, 8, 8 or 2), got (1, 1, 8, 3)",
    ),
    "integer scores": (
        SCORES,
        {"s": t(1, 1, 8, 8, dtype=torch.int32)},
        TypeError,
        "'s' must be floating point, got torch.int32",
    ),
    "scores elsewhere": (
        SCORES,
        {"s": t(1, 1, 8, 8, device="meta")},
        ValueError,
        "'s' is on meta and q on cpu; they must be on one device",
    ),
    "callable that returns too few rows": (
        SCORES,
        {"s": lambda start, stop: t(1, 1, 3, 8)},
        ValueError,
        "'s' must have shape (1 or 1, 4 or 1, 8, 8), got (1, 1, 3, 8)",
    ),
    "callable that returns no tensor": (SCORES, {"s": lambda start, stop: [1]}, TypeError, "'s' must be a tensor, got list"),
}


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("case", INPUTS)
def test_runtime_inputs_that_do_not_fit(backend, case):
    text, given, kind, message = INPUTS[case]
    with pytest.raises(kind) as caught:
        pc.compile(text, backend=backend)(Q, K, K, **given)
    assert str(caught.value) == message


def test_unknown_bound_input():
    with pytest.raises(TypeError, match="the pattern has no runtime input 'idz'; did you mean 'ids'"):
        pc.compile(IDS, idz=t(8))


def test_what_a_backend_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pytest.importorskip("triton")
    wide = t(1, 4, 8, 2048, dtype=torch.float64), t(1, 2, 8, 2048, dtype=torch.float64), t(1, 2, 8, 1100, dtype=torch.float64)
    with pytest.raises(ValueError, match="the triton backend cannot run this call") as caught:
        pc.compile("causal", backend="triton")(*wide)
    reasons = [
        "it runs on cuda devices, not cpu",
        "dtype float64 is not one of float16, bfloat16, float32",
        "head_dim 2048 is over 1024",
        "value head_dim 1100 is over 1024",
    ]
    assert str(caught.value) == f"the triton backend cannot run this call: {', '.join(reasons)}"


def test_what_no_backend_can_run():
    q, k = Q.to(torch.float8_e4m3fn), K.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="no backend can run this call") as caught:
        pc.compile("causal")(q, k, k)
    for name in ("gluon", "triton", "torch", "reference"):
        assert f"{name}: " in str(caught.value)
    assert "dtype float8_e4m3fn is not one of float16, bfloat16, float32, float64" in str(caught.value)


def test_the_reference_refuses_long_sequences():
    q, k = t(1, 1, 1, 16), t(1, 1, 20_000, 16)
    with pytest.raises(
        ValueError, match="the reference backend cannot run this call: 20000 keys are over 16384: its mask is dense"
    ):
        pc.compile("causal", backend="reference")(q, k, k)


@pytest.mark.parametrize(
    ("name", "hint"), [("tritn", "did you mean 'triton'?"), ("xyz", "there are gluon, reference, torch, triton")]
)
def test_unknown_backends(name, hint):
    with pytest.raises(ValueError, match="unknown backend") as caught:
        pc.compile("causal", backend=name)
    assert str(caught.value) == f"unknown backend '{name}'; {hint}"


def test_layers_must_be_chosen():
    for use in (lambda: pc.compile("gemma3"), lambda: pc.attention(Q, K, K, "gemma3")):
        with pytest.raises(pc.PatternError, match="the layers differ") as caught:
            use()
        assert caught.value.diagnostic.code == "which-layer"
        assert caught.value.diagnostic.hint == "take one with pattern.layer(0), or pass layer=0"
    assert pc.compile("gemma3", layer=5)(Q, K, K).shape == Q.shape


@pytest.mark.parametrize("text", ["gemma3", "causal"])
def test_layers_are_counted_from_0(text):
    for use in (lambda: pc.compile(text, layer=-1), lambda: pc.attention(Q, K, K, text, layer=-1)):
        with pytest.raises(ValueError, match="layer must be at least 0, the bottom layer, got -1"):
            use()


def test_a_schedule_of_layers_starts_again():
    pattern = pc.parse("layers(2 * causal + window(4))")
    assert [str(pattern.layer(i)) for i in (0, 1, 2, 3, 5)] == ["causal", "causal", "window(4)", "causal", "window(4)"]
    assert pc.compile(pattern, layer=99).pattern == pattern.layer(0)


def test_what_is_not_a_pattern():
    with pytest.raises(pc.PatternError, match="did you mean 'causal'"):
        pc.compile("causl")
    with pytest.raises(TypeError, match="pattern must be a Pattern or its text, got int"):
        pc.compile(3)


def test_one_name_for_two_inputs():
    with pytest.raises(pc.PatternError, match="the runtime input 't' is used in two ways") as caught:
        pc.compile("layout(t, 4) | layout(t, 8)", backend="torch")(Q, K, K, t=t(2, 2))
    assert caught.value.diagnostic.code == "input-conflict"
