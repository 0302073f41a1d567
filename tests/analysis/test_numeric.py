"""The numeric engine against networkx, against products of dense masks, and against itself by another way."""

import math
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patternc import parse
from patternc.analysis import numeric, quotient
from patternc.analysis.allowance import Allowance, Unaffordable
from patternc.analysis.bitsets import Reader, Runs, column, singletons
from patternc.analysis.certificate import Chain, ClosedSet, Joint, Path
from patternc.analysis.edges import layers_at, mask_of, mask_runs
from patternc.analysis.numeric import numeric_diameter
from patternc.analysis.quotient import Quotient, powers_for
from patternc.analysis.targets import Targets
from patternc.analysis.tracing import numeric_distances, numeric_field, numeric_path
from patternc.analysis.verdict import Verdict
from patternc.analysis.verify import verify
from patternc.diagnostics import PatternError
from patternc.pattern import Pattern
from patternc.testing import patterns, random_inputs

Mask = npt.NDArray[np.bool_]


def layer_masks(p: Pattern, n: int, **inputs: Any) -> list[Mask]:
    """The mask of every layer, heads united."""
    return [
        np.logical_or.reduce([p.mask(n, head, layer=layer, **inputs) for head in range(p.layer(layer).heads)])
        for layer in range(p.layers)
    ]


def stacked(masks: list[Mask], depth: int, residual: bool = True, start: int = 0) -> list[Mask]:
    """M_0, M_1, ... by dense products."""
    n = len(masks[0])
    found = [np.eye(n, dtype=bool)]
    for index in range(depth):
        step = masks[(start + index) % len(masks)] | (np.eye(n, dtype=bool) if residual else False)
        found.append(step.astype(np.float32) @ found[-1].astype(np.float32) > 0)
    return found


def dense_diameter(masks: list[Mask], target: Mask, residual: bool = True, start: int = 0) -> float:
    """The least number of layers by dense products; infinite once whole periods repeat themselves."""
    n, period = len(target), len(masks)
    held = np.eye(n, dtype=bool)
    seen = set()
    for level in range(100_000):
        if (held | ~target).all():
            return level
        if level % period == 0:
            if held.tobytes() in seen:
                return math.inf
            seen.add(held.tobytes())
        step = masks[(start + level) % period] | (np.eye(n, dtype=bool) if residual else False)
        held = step.astype(np.float32) @ held.astype(np.float32) > 0
    raise AssertionError("no end")


def value(verdict: Verdict) -> float:
    assert verdict.status in ("proved", "refuted"), verdict
    assert verdict.value is not None
    return verdict.value


def schedules(inputs: bool = False) -> st.SearchStrategy[str]:
    """Patterns, mixtures of them over heads and schedules over layers, half of them causal."""
    one = st.builds(lambda text, causal: f"causal & ({text})" if causal else text, patterns(2, True, inputs), st.booleans())
    mixed = st.one_of(one, st.builds(lambda a, b: f"heads(({a}) + 2 * ({b}))", one, one))
    layered = st.builds(lambda a, b, r: f"layers({r} * ({a}) + ({b}))", mixed, mixed, st.integers(1, 3))
    return st.one_of(mixed, layered)


def parsed_or_skip(text: str) -> Pattern:
    try:
        return parse(text)
    except PatternError:  # too complex
        assume(False)
        raise


def masks_or_skip(p: Pattern, n: int, **inputs: Any) -> list[Mask]:
    try:
        return layer_masks(p, n, **inputs)
    except ValueError:  # over the budget of a mask
        assume(False)
        raise AssertionError from None


# Exact, against dense products


@settings(max_examples=120, deadline=None)
@given(schedules(), st.integers(1, 40), st.booleans(), st.integers(0, 4))
def test_diameters_of_random_schedules(text: str, n: int, residual: bool, start: int) -> None:
    p = parsed_or_skip(text)
    inputs = random_inputs(p, n)
    masks = masks_or_skip(p, n, **inputs)
    verdict = numeric_diameter(p, n, residual=residual, start_layer=start, **inputs)
    target = np.tri(n, dtype=bool) if numeric.is_causal(p) else np.ones((n, n), bool)
    assert value(verdict) == dense_diameter(masks, target, residual, start)
    if verdict.certificate is not None and not p.inputs:
        assert verify(p, verdict) == []


@settings(max_examples=100, deadline=None)
@given(schedules(inputs=True), st.integers(1, 30), st.integers(0, 3), st.integers(0, 6), st.data())
def test_distances_and_fields_of_random_schedules(text: str, n: int, start: int, layers: int, data: st.DataObject) -> None:
    p = parsed_or_skip(text)
    inputs = random_inputs(p, n, heads=3)
    masks = masks_or_skip(p, n, **inputs)
    q, residual = data.draw(st.integers(0, n - 1)), data.draw(st.booleans())
    products = np.stack(stacked(masks, n * len(masks) + layers, residual, start))[:, q]
    want = np.where(products.any(0), products.argmax(0), -1)
    assert numeric_distances(p, q, n, residual=residual, start_layer=start, **inputs).tolist() == want.tolist()
    assert np.array_equal(numeric_field(p, layers, q, n, residual=residual, start_layer=start, **inputs), products[layers])
    k = data.draw(st.integers(0, n - 1))
    path = numeric_path(p, q, k, n, residual=residual, start_layer=start, **inputs)
    assert (path is None) == (want[k] < 0)
    if path is not None:
        check_path(path, masks, q, k, int(want[k]), start)


def check_path(path: Path, masks: list[Mask], q: int, k: int, hops: int, start: int) -> None:
    assert (path.positions[0], path.positions[-1], len(path.layers)) == (q, k, hops)
    assert list(path.layers) == [(start + index) % len(masks) for index in reversed(range(hops))]
    for layer, (a, b) in zip(path.layers, pairwise(path.positions), strict=True):
        assert masks[layer][a, b] or (path.residual and a == b)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("target", ["document(ids)", "causal & document(ids)", "full", "window(9)", "where(k < q)"])
def test_targets(target: str, residual: bool) -> None:
    n = 60
    p = parse("causal & document(ids) & (window(5) | random(2)) | self")
    ids = np.repeat([3, 4, 9], [17, 40, 3])
    want = dense_diameter(layer_masks(p, n, ids=ids), parse(target).mask(n, ids=ids), residual)
    assert value(numeric_diameter(p, n, target=target, residual=residual, ids=ids)) == want
    assert value(numeric_diameter(p, n, target=parse(target), residual=residual, ids=ids)) == want


def test_walks_of_exact_length() -> None:
    assert value(numeric_diameter(parse("layers(self + full)"), 5, residual=False)) == 2
    assert value(numeric_diameter(parse("where((q - k) % 2 == 1)"), 6, residual=False)) == math.inf
    alternate, inner = parse("layers((self & where(q > 0)) + (window(2) & where(q > 0 and k > 0)))"), "where(q > 0 and k > 0)"
    assert value(numeric_diameter(alternate, 8, target=inner, residual=False)) == 12
    assert value(numeric_diameter(parse("where((q - k) % 2 == 1)"), 6, target="where((q - k) % 2 == 0)", residual=False)) == 2
    assert value(numeric_diameter(parse("window(3)"), 9, residual=False)) == value(numeric_diameter(parse("window(3)"), 9)) == 4


# Against networkx


@pytest.mark.parametrize(
    "text",
    [
        "window(3) | random(2)",
        "causal & (window(4) | random(2, seed=5))",
        "random(4)",
        "blocks(4, 1, 1) | random(1, block=4) | global([0])",
        "chunk(8) | stride(7)",
        "window(2, dilation=3) | random(1, pool=9)",
    ],
)
@pytest.mark.parametrize("n", [1, 2, 63, 300])
def test_one_layer_is_a_shortest_path_problem(text: str, n: int) -> None:
    p = parse(text)
    graph = nx.from_numpy_array(p.mask(n), create_using=nx.DiGraph)
    want = dict(nx.all_pairs_shortest_path_length(graph))
    for q in (0, n // 2, n - 1):
        assert numeric_distances(p, q, n).tolist() == [want[q].get(k, -1) for k in range(n)]
    pairs = [(q, k) for q in range(n) for k in (range(q + 1) if numeric.is_causal(p) else range(n))]
    hops = max(want[q].get(k, math.inf) for q, k in pairs)
    verdict = numeric_diameter(p, n)
    assert value(verdict) == hops
    assert verdict.certificate is None or verify(p, verdict) == []
    if verdict.witness is not None:
        assert want[verdict.witness.q].get(verdict.witness.k, math.inf) == hops


# The way of large n, at small n


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["window", "causal & window"]),
    st.integers(3, 12),
    st.sampled_from(["random(1)", "random(2, seed=3)", "random(1, block=4)", "stride(5)", "document(ids)", "sinks(2)"]),
    st.integers(130, 260),
    st.sampled_from(["", "layers(2 * (X) + (Y))"]),
)
def test_blocks_and_landmarks_agree_with_running_every_key(kind: str, w: int, other: str, n: int, shape: str) -> None:
    text = f"{kind}({w}) | {'causal & ' if 'causal' in kind else ''}{other}"
    p = parse(shape.replace("X", text).replace("Y", f"{kind}({w + 3})") if shape else text)
    inputs = random_inputs(p, n)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(numeric, "_SMALL", 0)
        patched.setattr(numeric._Search, "_first_probes", lambda search: np.array([n // 3]))
        patched.setattr(numeric.Stack, "width", lambda stack: 64)
        patched.setattr(numeric, "MOST_BLOCKS", (64, 16))
        fast = numeric_diameter(p, n, **inputs)
    target = np.tri(n, dtype=bool) if "causal" in kind else np.ones((n, n), bool)
    assert value(fast) == dense_diameter(layer_masks(p, n, **inputs), target)


@pytest.mark.parametrize(
    "text",
    [
        "window(8) | random(1)",
        "window(12) | random(1, seed=2)",
        "window(30) | random(3)",
        "window(3) | random(1)",
        "causal & (window(6) | random(2))",
    ],
)
def test_keys_of_blocks_that_are_not_settled_are_run(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p, n = parse(text), 900
    every = value(numeric_diameter(p, n))
    monkeypatch.setattr(numeric, "_SMALL", 0)
    monkeypatch.setattr(numeric, "MOST_BLOCKS", (450,))
    monkeypatch.setattr(numeric._Search, "_first_probes", lambda search: np.array([n // 2]))
    keys_of = quotient.keys_of
    monkeypatch.setattr(numeric, "keys_of", lambda blocks, size, n, most=None: keys_of(blocks, size, n, most and 1))
    assert value(numeric_diameter(p, n)) == every


@settings(max_examples=80, deadline=None)
@given(schedules(inputs=True), st.integers(4, 60), st.integers(2, 9), st.integers(2, 8), st.booleans(), st.booleans())
def test_no_key_needs_more_than_its_block(text: str, n: int, size: int, w: int, causal: bool, powers: bool) -> None:
    p = parsed_or_skip(f"({text}) | {'causal & ' if causal else ''}window({w})")
    inputs, allowance = random_inputs(p, n, heads=3), Allowance(20, 1 << 28)
    masks = masks_or_skip(p, n, **inputs)
    layers = layers_at(p, n, "may", inputs, allowance)
    target = np.tri(n, dtype=bool) if causal else np.ones((n, n), bool)
    chosen = powers_for(layers, n, max(1, n // size))[0] if powers else ()
    blocks = np.arange(-(-n // size))
    depths = Quotient(layers, Targets(n, causal), size, chosen, allowance).depths(blocks, 10 * n)
    products = np.stack(stacked(masks, n * len(masks)))
    for block, depth in zip(blocks, depths, strict=True):
        keys = slice(block * size, min(n, block * size + size))
        if depth < len(products):
            assert (products[depth][:, keys] | ~target[:, keys]).all()


def test_blocks_settle_what_they_can() -> None:
    n, allowance = 4_000, Allowance(20, 1 << 28)
    p = parse("causal & (window(16) | random(3))")
    layers = layers_at(p, n, "may", {}, allowance)
    powers, size = powers_for(layers, n, 256)
    assert size >= 16
    assert powers
    depths = Quotient(layers, Targets(n, True), size, powers, allowance).depths(np.arange(-(-n // size)), n)
    assert value(numeric_diameter(p, n)) <= depths.max() <= 24


# The parts


@settings(max_examples=150, deadline=None)
@given(patterns(3, choices=True, inputs=True), st.integers(1, 70))
def test_layers_and_readers_hold_the_mask(text: str, n: int) -> None:
    p = parsed_or_skip(text)
    inputs, allowance = random_inputs(p, n), Allowance(20, 1 << 28)
    (mask,) = masks_or_skip(p, n, **inputs)
    (layer,) = layers_at(p, n, "may", inputs, allowance)
    assert np.array_equal(mask_of(layer.runs, n), mask)
    sets = singletons(np.arange(n), n)
    out = np.zeros_like(sets)
    layer.reader(allowance).read(sets, out)
    assert np.array_equal(np.stack([column(out, j) for j in range(n)], 1), mask)
    assert not out[-1].any()
    some = np.random.default_rng(n).random(n) < 0.3
    assert np.array_equal(layer.mark(some), mask[some].any(0))
    assert all(layer.keys(q).tolist() == np.flatnonzero(mask[q]).tolist() for q in range(0, n, 7))


@pytest.mark.parametrize(
    "text",
    [
        "~document(ids)",
        "causal & window(30) - document(ids)",
        "random(3, block=4) & document(ids)",
        "random(5) & random(9, seed=1) & ~layout(t, 5)",
        "window(9) & document(ids) & layout(t, 5)",
        "heads((causal & random(2)) + random(2, block=3))",
    ],
)
def test_filters_and_draws_in_each_other(text: str) -> None:
    p, n = parse(text), 47
    inputs = {"ids": np.repeat([0, 1, 2, 5], [7, 20, 1, 19]), "t": np.random.default_rng(0).random((2, 10, 10)) < 0.5}
    (layer,) = layers_at(p, n, "may", inputs, Allowance(20, 1 << 28))
    assert np.array_equal(mask_of(layer.runs, n), layer_masks(p, n, **inputs)[0])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 900), st.sampled_from([1, 1, 1, 2, 7, 40]), st.integers(0, 2**32))
def test_runs_of_any_length_are_read(n: int, step: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = np.flatnonzero(generator.random(n) < generator.random())
    first = generator.integers(0, n, len(rows))
    length = np.exp(generator.random(len(rows)) * np.log(2 * n)).astype(int)
    length[generator.random(len(rows)) < generator.choice([0, 0.8, 1])] = seed % 100
    runs = Runs.of(rows, first, np.minimum(first + length, n - 1), step)
    sets = singletons(generator.permutation(n)[:128], n)  # few, so that a key left out shows
    out = np.zeros_like(sets)
    Reader.of([runs], n).read(sets, out)
    want = np.zeros_like(sets)
    for q, a, b in zip(runs.rows, runs.first, runs.last, strict=True):
        want[q] = np.bitwise_or.reduce(sets[a : b + 1 : step], axis=0)
    assert np.array_equal(out, want)


def test_missing_inputs_bound_what_given_ones_do() -> None:
    p, n = parse("causal & (window(3) | layout(t, 4) | document(ids) | random(2))"), 40
    for seed in range(5):
        inputs = random_inputs(p, n, seed=seed)
        for layers in range(5):
            fields = [
                numeric_field(p, layers, n - 1, n, mode="must"),
                numeric_field(p, layers, n - 1, n, **inputs),
                numeric_field(p, layers, n - 1, n),
            ]
            assert all((a <= b).all() for a, b in pairwise(fields))


# Limits and bad input


def test_what_is_too_long_is_bounded_and_what_is_too_large_unknown() -> None:
    p = parse("causal & (window(3) | random(1))")
    begun = time.monotonic()
    verdict = numeric_diameter(p, 200_000, limit_seconds=2)
    assert time.monotonic() - begun < 20
    assert verdict.status == "bounded"
    assert verdict.lower is not None
    assert verdict.upper is not None
    assert 1 < verdict.lower < verdict.upper <= 199_999
    assert numeric_diameter(p, 200_000, limit_bytes=1 << 20).status == "unknown"
    assert numeric_diameter(p, 2**31 - 1).status == "unknown"
    with pytest.raises(Unaffordable):
        numeric_distances(p, 0, 2**31 - 1)


def test_lengths_that_no_array_fits_are_refused_at_once() -> None:
    begun = time.monotonic()
    for n in (10**8, 10**9, 2**31 - 1):
        verdict = numeric_diameter(parse("causal & document(ids) & topk(s, 2)"), n, mode="must")
        assert (verdict.status, verdict.reason) == ("unknown", "it needs more than 1,024 MiB")
    assert time.monotonic() - begun < 2


def test_an_infinite_diameter_has_a_closed_set() -> None:
    for text in ("random(2)", "causal & random(3)", "causal & window(9, dilation=2)", "chunk(7)", "window(left=0, right=3)"):
        p = parse(text)
        verdict = numeric_diameter(p, 2_000)
        assert (verdict.status, verdict.value) == ("refuted", math.inf)
        assert isinstance(verdict.certificate, ClosedSet)
        assert verify(p, verdict) == []


def test_a_finite_diameter_has_a_path_and_a_chain() -> None:
    p = parse("layers(2 * (causal & window(9)) + (causal & random(3)))")
    verdict = numeric_diameter(p, 700, start_layer=1)
    assert verdict
    assert isinstance(verdict.certificate, Joint)
    path, chain = verdict.certificate.parts
    assert isinstance(path, Path)
    assert isinstance(chain, Chain)
    assert len(path.layers) == verdict.value == len(chain.layers) + 1
    assert (path.positions[0], path.positions[-1]) == (chain.start, chain.k) == (verdict.witness.q, verdict.witness.k)
    assert verify(p, verdict) == []
    for wrong in (verdict.value - 1, verdict.value + 1):
        assert verify(p, replace(verdict, value=wrong)) != []
    first, *others = chain.sets
    fewer = replace(chain, sets=(first, *(runs[1:] for runs in others)))
    assert verify(p, replace(verdict, certificate=Joint((path, fewer)))) != []


def test_runtime_inputs_leave_no_chain_to_check() -> None:
    p, n = parse("causal & (window(3) | random(1) & document(ids))"), 60
    assert isinstance(numeric_diameter(p, n).certificate, Path)
    assert numeric_diameter(p, n, ids=np.zeros(n, int)).certificate is None


def test_walks_of_exact_length_have_no_certificate() -> None:
    verdict = numeric_diameter(parse("where((q - k) % 2 == 1)"), 6, target="where((q - k) % 2 == 0)", residual=False)
    assert (verdict.value, verdict.certificate) == (2, None)


@pytest.mark.parametrize(
    "wrong",
    [{"n": 0}, {"n": 2**31}, {"start_layer": -1}],
)
def test_bad_numbers(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"n is a sequence length|start_layer must be"):
        numeric_diameter(parse("causal"), **{"n": 8, **wrong})


def test_bad_calls() -> None:
    p = parse("causal & document(ids) & layout(t, 4)")
    with pytest.raises(ValueError, match="no option and no runtime input 'start'"):
        numeric_diameter(p, 9, start=1)
    with pytest.raises(ValueError, match="9 is not a position"):
        numeric_distances(p, 9, 9)
    with pytest.raises(ValueError, match="layers must be"):
        numeric_field(p, -1, 0, 9)
    with pytest.raises(ValueError, match="must not return"):
        numeric_field(p, 1, 0, 4, ids=np.array([0, 1, 0, 1]), t=np.ones((1, 1)))
    with pytest.raises(ValueError, match="has shape"):
        numeric_field(p, 1, 0, 4, ids=np.array([0, 1, 1, 1]), t=np.ones((2, 1)))


def test_runs_of_a_mask() -> None:
    mask = np.random.default_rng(3).random((50, 50)) < 0.5
    assert np.array_equal(mask_of(mask_runs(mask), 50), mask)
