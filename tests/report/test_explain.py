"""What `explain` says is what the mask holds."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import patternc as pc
from patternc.language.primitives import PRIMITIVES
from patternc.report.explain import explain, words
from patternc.report.facts import keys_per_query, runtime_inputs

STATIC = st.sampled_from(
    ["causal", "self", "window(3)", "stride(3)", "chunk(4)", "sinks(2)", "none", "columns([0, -1])", "random(2)"]
)
LEAVES = STATIC | st.sampled_from(["topk(s, 2)", "topk(s, 1, block=2)", "document(ids)", "layout(t, 2)"])
MIXED = st.recursive(
    LEAVES, lambda p: st.tuples(p, st.sampled_from("|&"), p).map(lambda t: f"({t[0]} {t[1]} {t[2]})"), max_leaves=5
)


@settings(max_examples=100, deadline=None)
@given(MIXED, st.integers(1, 15), st.integers(0, 2**32 - 1))
def test_keys_per_query(text: str, n: int, seed: int) -> None:
    p, rng, half = pc.parse(text), np.random.default_rng(seed), -(-n // 2)
    made = {"ids": np.sort(rng.integers(0, 3, n)), "t": rng.random((half, half)) < 0.5, "s": rng.standard_normal((n, n))}
    rows = p.mask(n, **{name: made[name] for name in p.inputs}).sum(1)
    keys = keys_per_query(p.meaning(), n)
    assert keys is not None
    if keys.exact:
        assert (keys.least, keys.mean, keys.most) == (rows.min(), rows.mean(), rows.max())
    else:
        assert p.inputs
        assert keys.least <= rows.min()
        assert keys.mean >= rows.mean()
        assert keys.most >= rows.max()


def test_keys_that_do_not_depend_on_scores_are_exact() -> None:
    keys = keys_per_query(pc.preset("dsa").meaning(), 4096)
    assert keys is not None
    assert (keys.exact, keys.least, keys.most) == (True, 1, 2048)
    assert keys.pairs == 2048 * 2049 // 2 + 2048 * 2048


def test_long_sequences_are_counted_by_a_sample() -> None:
    keys = keys_per_query(pc.parse("causal & window(4096)").meaning(), 1 << 30)
    assert keys is not None
    assert (keys.sampled, keys.most) == (True, 4096)
    assert keys.mean == pytest.approx(4096, rel=0.01)


def test_every_primitive_has_words() -> None:
    for primitive in PRIMITIVES.values():
        (word,) = words(pc.parse(primitive.example).expression)
        assert word.text == primitive.example
        assert word.summary == primitive.summary
        assert word.equation


def test_words() -> None:
    found = words(pc.parse("causal & (window(left=3, right=0) | causal | where(q - k == 5)) & layout(t, 64)").expression)
    assert [(word.text, word.equation) for word in found] == [
        ("causal", "k <= q"),
        ("window(left=3, right=0)", "-0 <= q - k <= 3"),
        ("where(q - k == 5)", "q - k == 5"),
        ("layout(t, 64)", "t[q // 64, k // 64]"),
    ]


def test_the_closed_form_is_the_pattern() -> None:
    for text in ("causal & (window(4) | stride(8))", "bigbird_etc", "sparse_fixed"):
        (section,) = explain(pc.parse(text)).sections
        assert section.possible is None
        assert pc.parse(f"where({section.held})").equivalent(text)
    (section,) = explain(pc.preset("packed")).sections
    assert pc.parse(f"where({section.held})").equivalent("self")
    assert pc.parse(f"where({section.possible})").equivalent("causal")


def test_costs() -> None:
    (section,) = explain(pc.parse("causal & window(4)"), n=16, head_dim=64).sections
    cost = section.cost
    assert cost.keys is not None
    assert cost.keys.pairs == 4 * 16 - 6
    assert cost.forward_flops == 4 * 64 * 58
    assert cost.backward_flops == 10 * 64 * 58
    assert cost.speedup == pytest.approx(256 / 58)


def test_guarantees() -> None:
    found = explain(pc.parse("causal & topk(s, 4)"))
    assert [v.status for v in found.verdicts] == ["proved", "proved", "refuted"]
    out = io.StringIO()
    Console(file=out, width=100).print(found.render())
    assert "refuted  every query reads its own position" in out.getvalue()


def test_inputs() -> None:
    found = runtime_inputs(pc.parse("layout(t, 64) & document(ids) | topk(s, 2, block=16) | topk(z, 4)").meaning())
    assert {i.name: i.shape for i in found} == {
        "t": "(batch, heads, ceil(n / 64), ceil(n / 64))",
        "ids": "(n,), (batch, n) or (documents + 1,)",
        "s": "(batch, heads, n, ceil(n / 16))",
        "z": "(batch, heads, n, n)",
    }


@pytest.mark.parametrize("name", pc.presets())
def test_presets_are_explained(name: str) -> None:
    found = explain(pc.preset(name), n=1024)
    assert json.loads(json.dumps(found.to_json()))["name"] == name
    for width in (30, 100):
        out = io.StringIO()
        Console(file=out, width=width).print(found.render())
        assert "cost at n = 1,024" in out.getvalue()
        assert max(map(len, out.getvalue().splitlines())) <= width
