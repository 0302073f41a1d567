"""Random patterns at random shapes: what the backends compute is dense attention under `Pattern.mask`."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.testing import assert_matches_dense, patterns, random_call

torch = pytest.importorskip("torch")

RANDOM = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@st.composite
def shapes(draw):
    """Batch, heads, lengths (one, ragged, under a tile, several tiles; fewer queries than keys), head dims and dtype."""
    n = draw(st.one_of(st.integers(1, 60), st.sampled_from([1, 127, 128, 129, 256]), st.integers(60, 300)))
    kv_heads = draw(st.sampled_from([1, 1, 2]))
    return {
        "n": n,
        "n_q": draw(st.one_of(st.just(n), st.integers(1, n))),
        "batch": draw(st.sampled_from([1, 1, 2])),
        "heads": kv_heads * draw(st.sampled_from([1, 2, 3])),
        "kv_heads": kv_heads,
        "head_dim": draw(st.sampled_from([16, 20, 64])),
        "value_dim": draw(st.sampled_from([None, 24])),
        "seed": draw(st.integers(0, 999)),
    }


def check(text, backend, dtype, shape):
    call = random_call(text, dtype=dtype, **shape)
    try:
        assert_matches_dense(text, call.q, call.k, call.v, backend=backend, **call.inputs)
    except pc.PatternError as refused:
        assert refused.diagnostic.code == "too-complex"


@pytest.mark.parametrize("backend", ["torch", "reference"])
@settings(RANDOM, max_examples=80)
@given(
    text=patterns(3, choices=True, inputs=True),
    dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
    shape=shapes(),
)
def test_matches_dense(backend, text, dtype, shape):
    check(text, backend, dtype, shape)


@settings(RANDOM, max_examples=30)
@given(
    parts=st.lists(st.tuples(st.integers(1, 3), patterns(1, choices=True, inputs=True)), min_size=2, max_size=3), shape=shapes()
)
def test_heads_that_differ(parts, shape):
    text = f"heads({' + '.join(f'{count} * ({part})' for count, part in parts)})"
    check(text, "torch", "float32", shape)


# Candidates whose rows are several interleaved progressions, divisions that ISL leaves unnamed, and conditions that only the
# length decides.
HARD = [
    "(summary(7) | window(1)) & ((summary(3, 2) | rows([0])) - summary(2))",
    "full | random(1)",
    "where((q*3 + k*5) % 7 < 2 or (q + k) % 5 == 1) & random(2)",
    "(stride(4) | window(9, dilation=2)) & random(4)",
    "(stride(7) | where((q + k) % 5 == 1)) & random(2, block=4)",
    "where(n % 2 == 0)",
    "where(n % 2 == 1) & causal | self",
    "where(n < 100)",
]


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("n", [99, 130])
def test_hard(backend, text, n):
    check(text, backend, "float32", {"n": n, "heads": 2})
