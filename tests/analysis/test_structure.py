"""Hubs, Hamiltonian paths and universality: against dense masks and networkx, and what the papers say of their patterns."""

from __future__ import annotations

import json
from functools import reduce
from itertools import pairwise, permutations

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis import hamiltonian, hub, period, universality
from patternc.analysis.verify import verify
from patternc.relation import BudgetExceeded, Pair
from patternc.testing import patterns

P, R, U = "proved", "refuted", "unknown"

TABLE = [
    # expression, hub, Hamiltonian path, Yun et al., BigBird, Sparse Transformer
    ("full", P, P, P, P, P),
    ("self", R, R, R, R, R),
    ("none", R, R, R, R, R),
    ("causal", R, P, R, R, P),
    ("bigbird", P, P, P, P, P),
    ("bigbird_etc", P, P, P, P, P),
    ("longformer", P, P, P, P, P),
    ("longformer_dilated", P, P, P, P, P),
    ("sparse_strided", R, P, R, R, P),
    ("sparse_fixed", R, P, R, R, P),
    ("sparse_strided_layers", R, P, R, R, P),
    ("sparse_fixed_heads", R, P, R, R, P),
    ("mistral", R, P, R, R, R),
    ("gemma3", R, P, R, R, R),
    ("causal & window(512, dilation=4)", R, R, R, R, R),
    ("causal & global([0])", R, R, R, R, R),
    ("global([0])", P, R, R, R, P),
    ("global([0]) | self", P, R, R, P, P),
    ("local(8)", R, P, P, R, R),
    ("local(8) | global([-1])", P, P, P, P, P),
    ("local(2) | global([5])", R, P, P, R, R),
    ("where(q == n // 2 or k == n // 2 or q == k)", P, R, R, P, P),
    ("layers(window(4) + global([0]))", R, P, R, R, R),
    ("layers(window(4) + (window(2) | global([0])))", R, P, P, R, R),
    ("layers((self | global([0, -1])) + (self | global([-1])))", P, R, R, P, P),
    ("stride(3)", R, R, R, R, R),
    ("chunk(4)", R, R, R, R, R),
    ("where(k <= q + 1)", R, P, P, R, P),
    ("rows([0]) | window(2)", R, P, P, R, R),
    ("random(3)", R, U, R, R, R),
    ("random(3) | columns([0])", R, U, R, R, R),
    ("random(3) | rows([0])", R, U, R, R, R),
    ("causal & random(3)", R, R, R, R, R),
    ("causal & (random(3) | window(2))", R, P, R, R, R),
    ("packed", R, R, R, R, R),
    ("layout(t, 2)", R, R, R, R, R),
    ("layout(t, 2) | local(2)", R, P, P, R, R),
    ("flagship", R, P, R, R, P),
]


@pytest.mark.parametrize(("text", "has_hub", "path", "yun", "big_bird", "sparse"), TABLE)
def test_table(text: str, has_hub: str, path: str, yun: str, big_bird: str, sparse: str) -> None:
    p = pc.parse(text)
    found = [p.hub().status, p.hamiltonian_path().status, *(criterion.verdict.status for criterion in p.universality())]
    assert found == [has_hub, path, yun, big_bird, sparse]


def layer_masks(p: pc.Pattern, n: int) -> list[np.ndarray]:
    """The mask of each layer, heads united."""
    found = []
    for layer in range(p.layers):
        heads = p.layer(layer).heads
        found.append(reduce(np.logical_or, (p.mask(n, head, layer=layer) for head in range(heads))))
    return found


def hubs_of(masks: list[np.ndarray]) -> set[int]:
    each = np.logical_and.reduce(masks) | np.eye(len(masks[0]), dtype=bool)
    return {x for x in range(len(each)) if each[x].all() and each[:, x].all()}


def has_path(mask: np.ndarray) -> bool:
    """Whether some order is a path, by trying all."""
    return any(all(mask[a, b] for a, b in pairwise(order)) for order in permutations(range(len(mask))))


def wait_free(text: str) -> pc.Pattern:
    try:
        return pc.parse(text)
    except pc.PatternError as error:
        assume(error.code not in ("too-complex", "too-many-terms"))
        raise


MIXED = st.one_of(
    patterns(max_depth=3),
    patterns(max_depth=2, choices=True),
    st.tuples(patterns(max_depth=2), patterns(max_depth=1)).map(lambda t: f"layers(2 * ({t[0]}) + ({t[1]}))"),
    st.tuples(patterns(max_depth=1), patterns(max_depth=1)).map(lambda t: f"heads(({t[0]}) + ({t[1]})) | global([0, -1])"),
    st.tuples(patterns(max_depth=1), st.integers(0, 3)).map(lambda t: f"({t[0]}) | global([{t[1]}])"),
)


@settings(max_examples=150, deadline=None)
@given(MIXED)
def test_hubs_of_random_patterns(text: str) -> None:
    p = wait_free(text)
    verdict = p.hub()
    if verdict.status == R:
        w = verdict.witness
        masks = layer_masks(p, w.n)
        assert hubs_of(masks) == set()
        assert 0 in (w.q, w.k)
        assert not np.logical_and.reduce(masks)[w.q, w.k]
    for n in (1, 2, 3, 5, 8, 13) if verdict else ():
        found = hubs_of(layer_masks(p, n))
        assert found
        assert verdict.value in {None, *found}
    if verdict:
        assert verify(p, verdict) == []


@settings(max_examples=100, deadline=None)
@given(MIXED, st.integers(1, 14))
def test_hubs_at_one_length(text: str, n: int) -> None:
    p = wait_free(text)
    verdict, found = p.hub(n), hubs_of(layer_masks(p, n))
    assert verdict.status in ((P, U) if found else (R,))
    if verdict:
        assert verdict.value in found
        assert verify(p, verdict) == []
    elif not found:
        assert verdict.witness.n == n


def test_where_hubs_are() -> None:
    assert pc.parse("local(8) | global([0])").hub().value == 0
    assert pc.parse("local(8) | global([-1])").hub().reason.startswith("position n - 1 is one for every n")
    assert pc.parse("local(8) | global([-1])").hub(100).value == 99
    late = pc.parse("local(2) | global([50])").hub()
    assert (late.status, late.witness.n) == (R, 4)
    assert late.reason.endswith("; from n = 51 on there is one (at n = 51, position 50)")
    assert "from n" not in pc.parse("local(2)").hub().reason
    assert pc.parse("local(2)").hub(3).value == 1


@settings(max_examples=150, deadline=None)
@given(MIXED)
def test_hamiltonian_paths_of_random_patterns(text: str) -> None:
    p = wait_free(text)
    verdict = p.hamiltonian_path()
    for n in (1, 2, 3, 4, 5, 6) if verdict else ():
        assert has_path(np.logical_or.reduce(layer_masks(p, n)))
    if verdict.status == R and (w := verdict.witness) is not None:
        mask = np.logical_or.reduce(layer_masks(p, w.n))
        assert w.n > 7 or not has_path(mask)
        if p.prove_causal():
            assert w.k == w.q - 1
            assert not mask[w.q, w.k]


@settings(max_examples=150, deadline=None)
@given(MIXED, st.integers(1, 7))
def test_hamiltonian_paths_at_one_length_are_always_decided(text: str, n: int) -> None:
    p = wait_free(text)
    verdict = p.hamiltonian_path(n)
    assert verdict.status == (P if has_path(np.logical_or.reduce(layer_masks(p, n))) else R)


@settings(max_examples=60, deadline=None)
@given(patterns(max_depth=3, choices=True), st.integers(2, 24))
def test_causal_paths_exist_where_every_key_is_reached(text: str, n: int) -> None:
    p = wait_free(f"causal & ({text})")
    mask = p.mask(n)
    closure = nx.transitive_closure(nx.from_numpy_array(mask.astype(int), create_using=nx.DiGraph), reflexive=True)
    all_reached = all(closure.has_edge(q, k) for q in range(n) for k in range(q))
    verdict = p.hamiltonian_path(n)
    assert verdict.status == (P if all_reached else R)
    if not all_reached:
        q = verdict.witness.q
        assert verdict.witness == Pair(n, q, q - 1)
        assert not mask[q, q - 1]


@given(st.integers(1, 7).flatmap(lambda n: st.lists(st.booleans(), min_size=n * n, max_size=n * n)))
def test_trying_all_orders(bits: list[bool]) -> None:
    n = int(len(bits) ** 0.5)
    mask = np.array(bits).reshape(n, n)
    assert hamiltonian._has_order(mask) == has_path(mask)


@given(st.integers(1, 9).flatmap(lambda n: st.lists(st.booleans(), min_size=n * n, max_size=n * n)))
def test_closure(bits: list[bool]) -> None:
    n = int(len(bits) ** 0.5)
    mask = np.array(bits).reshape(n, n)
    graph = nx.transitive_closure(nx.from_numpy_array(mask.astype(int), create_using=nx.DiGraph), reflexive=True)
    assert np.array_equal(hamiltonian.closure(mask), nx.to_numpy_array(graph, nodelist=range(n)).astype(bool))
    assert hamiltonian.closure(np.ones((65, 65), bool)) is None


@pytest.mark.parametrize("n", [2, 5, 7, 8, 10, 13, 20])
@pytest.mark.parametrize("kind", ["layers", "heads"])
def test_all_layers_and_heads_draw(kind: str, n: int) -> None:
    p = pc.parse(f"{kind}((causal & random(3)) + (causal & random(4, seed=1)) + (causal & random(4, seed=2)))")
    masks = layer_masks(p, n)
    held = np.logical_or.reduce(masks).diagonal(-1).all()
    assert p.hamiltonian_path(n).status == (P if held else R)
    itself = all(mask.diagonal().all() for mask in masks)
    assert universality.reads_itself(p, n).status == (P if itself else R)


def test_the_missing_step_is_the_witness() -> None:
    scored = pc.parse("(causal & topk(s, 1)) | where(q == 1 and k == 0)")
    assert scored.hamiltonian_path().witness == Pair(3, 2, 1)
    assert pc.parse("causal & window(512, dilation=4)").hamiltonian_path().witness == Pair(2, 1, 0)
    assert pc.parse("causal & window(512, dilation=4)").hamiltonian_path(10**6).witness == Pair(10**6, 1, 0)
    assert pc.parse("causal & random(3)").hamiltonian_path(10**6).witness == Pair(10**6, 6, 5)
    assert "all orders" in pc.parse("global([0]) | self").hamiltonian_path().reason
    assert pc.parse("packed").hamiltonian_path().reason.endswith("with every position a document of its own")
    assert pc.parse("causal & random(200)").hamiltonian_path(2**31 - 1).status == U


def brute_yun(masks: list[np.ndarray]) -> tuple[bool, bool, bool]:
    n = len(masks[0])
    reach = np.eye(n, dtype=bool)
    for layer in range(len(masks) * (n + 1)):
        reach = (masks[layer % len(masks)] | np.eye(n, dtype=bool)) @ reach
    merged = np.logical_or.reduce(masks)
    return all(m.diagonal().all() for m in masks), has_path(merged), bool(reach.all())


@settings(max_examples=100, deadline=None)
@given(MIXED, st.integers(1, 6))
def test_yun_at_one_length(text: str, n: int) -> None:
    p = wait_free(text)
    criterion = universality.yun(p, n)
    wanted = brute_yun(layer_masks(p, n))
    assert [part.status for part in criterion.parts] == [P if holds else R for holds in wanted]
    assert criterion.verdict.status == (P if all(wanted) else R)
    assert bool(criterion) == all(wanted)


@settings(max_examples=100, deadline=None)
@given(MIXED)
def test_universality_for_every_length(text: str) -> None:
    p = wait_free(text)
    conditions = universality.yun(p).parts
    for n in (1, 2, 4, 6):
        for verdict, holds in zip(conditions, brute_yun(layer_masks(p, n)), strict=True):
            assert holds or not verdict
            assert not holds or verdict.status != R or verdict.witness is None or verdict.witness.n != n
    star = universality.big_bird(p)
    if star:
        assert conditions[0]
        assert star.parts[1].certificate is not None


@settings(max_examples=60, deadline=None)
@given(MIXED, st.integers(1, 12), st.integers(1, 3))
def test_sparse_transformer_at_one_length(text: str, n: int, hops: int) -> None:
    p = wait_free(text)
    masks = layer_masks(p, n)
    reach = np.eye(n, dtype=bool)
    for layer in range(hops):
        reach = (masks[layer % len(masks)] | np.eye(n, dtype=bool)) @ reach
    wanted = P if not (np.tri(n, dtype=bool) & ~reach).any() else R
    assert universality.sparse_transformer(p, n, hops=hops).verdict.status in (wanted, U)


def test_the_lowest_layer_comes_last_on_a_path() -> None:
    itself = np.eye(3, dtype=bool)
    first, second = itself.copy(), itself.copy()
    first[1, 0] = second[2, 1] = True
    assert not universality._beyond([np.tri(3, dtype=bool), itself], 1)
    assert universality._beyond([first, second], 2) is None  # 2 reads 1 in the upper layer, and 1 reads 0 in the lower
    assert universality._beyond([second, first], 2) == (2, 0)
    assert universality._beyond([second, first], 3) is None
    assert universality._beyond([first, second], 1) == (2, 0)


def test_the_sparse_transformer_takes_two_hops_for_every_length() -> None:
    for text in ("sparse_transformer_strided(1024)", "sparse_transformer_fixed(1024, 8)"):
        p = pc.parse(text)
        (part,) = universality.sparse_transformer(p).parts
        assert (part.status, part.value) == (P, 2)
        assert verify(p, part, "must") == []
        assert universality.sparse_transformer(p, hops=1).verdict.status == R
    with pytest.raises(ValueError, match="hops"):
        universality.sparse_transformer(pc.parse("causal"), hops=0)


def test_the_position_that_is_cut_off_is_the_witness() -> None:
    reads_none = universality.reaches_all(pc.parse("where(q != 2 or k == 2)"))
    assert (reads_none.status, reads_none.witness) == (R, Pair(3, 2, 0))
    read_by_none = universality.reaches_all(pc.parse("where(k != 2 or q == 2)"))
    assert (read_by_none.status, read_by_none.witness) == (R, Pair(3, 0, 2))
    assert "position 2 is read by no other position" in read_by_none.reason


def test_criteria_say_where_they_come_from() -> None:
    criteria = pc.parse("longformer").universality()
    assert [criterion.name for criterion in criteria] == ["Yun et al. 2020", "BigBird 2020", "Sparse Transformer 2019"]
    assert all(criterion.source for criterion in criteria)
    data = json.loads(json.dumps([criterion.to_json() for criterion in criteria]))
    assert [len(entry["parts"]) for entry in data] == [3, 2, 1]
    assert data[0]["status"] == P
    assert str(criteria[0]).startswith("Yun et al. 2020: proved: the three conditions")
    refused = universality.yun(pc.parse("causal"))
    assert refused.verdict.witness == Pair(2, 0, 1)
    assert "no layer reads a later key" in refused.verdict.reason


def test_over_budget_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BudgetExceeded

    p = pc.parse("causal & window(4)")
    for module in (hub, hamiltonian, universality):
        monkeypatch.setattr(module, "period", refuse)
    assert (p.hub().status, p.hamiltonian_path().status, universality.reads_itself(p).status) == (U, U, U)


def test_lengths_are_checked() -> None:
    p = pc.parse("causal")
    for n in (0, -1, 2**31):
        for question in (p.hub, p.hamiltonian_path, p.universality):
            with pytest.raises(ValueError, match="n is a sequence length"):
                question(n)


def test_small_runs_are_few_and_real() -> None:
    assert period.small_run(pc.parse("heads(100 * causal + full)"), lambda layers: (0, 0)) is None
    assert period.small_run(pc.parse("causal"), lambda layers: (0, 0), 10**6) is None
    assert period.small_run(pc.parse("heads(random(1) + topk(s, 1))"), lambda layers: (0, 0)) is None
    found = period.small_run(pc.parse("layers(heads(self + rows([0])) + full)"), lambda m: (len(m), int(m[0].sum())), 5)
    assert found is not None
    assert found.pair == Pair(5, 2, 9)


@pytest.mark.parametrize("n", [40, 57])
def test_runtime_inputs_are_tried_at_the_length_that_is_asked_about(n: int) -> None:
    for text in ("causal & document(ids)", "causal & layout(t, 4)"):
        verdict = pc.parse(text).hamiltonian_path(n)
        assert (verdict.status, verdict.witness) == (R, Pair(n, 1, 0))
    tried = universality.reads_itself(pc.parse("layout(t, 4) | topk(s, 3)"), n)
    assert (tried.status, tried.witness.n) == (R, n)
