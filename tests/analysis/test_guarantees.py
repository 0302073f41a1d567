"""Every guarantee is one: what is proved holds in concrete masks, what is refuted fails in them, for each word of a claim."""

from __future__ import annotations

import math
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis.guarantees import MEASURES as MEASURED
from patternc.analysis.guarantees import PROPERTIES as DECIDED
from patternc.analysis.guarantees import check, compared
from patternc.analysis.verdict import Verdict, bounded, estimated, unknown
from patternc.language.asserts import BOUNDS, EQUAL, MEASURES, PROPERTIES, SUBSET, Claim
from patternc.language.printer import show
from patternc.language.resolve import presets_text
from patternc.pattern import Pattern, parse_asserts
from patternc.testing import patterns, random_inputs

Mask = npt.NDArray[np.bool_]

CORPUS = Path(__file__).resolve().parents[2] / "grammar" / "corpus" / "accept"
P, R, U = "proved", "refuted", "unknown"


def verdict(text: str) -> Verdict:
    (claim,) = parse_asserts(f"assert {text}")
    return check(claim)


def test_every_word_of_the_language_has_its_guarantee() -> None:
    assert tuple(DECIDED) == PROPERTIES
    assert tuple(MEASURED) == MEASURES


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("causal(window(left=4))", P),
        ("causal(full)", R),
        ("causal(full) at 1", P),
        ("causal(where(k <= q or n < 10)) at 9", R),
        ("causal(where(k <= q or n < 10)) at 10", P),
        ("nonempty(where(k < q or n > 9))", R),
        ("nonempty(where(k < q or n > 9)) at 9", R),
        ("nonempty(where(k < q or n > 9)) at 10", P),
        ("self_loops(where(k < q or n > 9)) at 9", R),
        ("self_loops(where(k < q or n > 9)) at 1M", P),
        ("self_loops(layers(causal + full))", P),
        ("self_loops(heads(causal + none))", R),
        ("hub(global([3]))", R),
        ("hub(global([3])) at 4", P),
        ("hub(global([0]))", P),
        ("hamiltonian(causal & window(2))", P),
        ("hamiltonian(causal & stride(2))", R),
        ("hamiltonian(causal & stride(2)) at 1", P),
        ("hamiltonian(causal & document(ids)) at 40", R),
        ("nonempty(causal & layout(t, 4)) at 40", R),
        ("self_loops(layout(t, 4) | topk(s, 3)) at 50", R),
        ("universal(bigbird)", P),
        ("universal(local(4))", P),
        ("universal(causal)", R),
        ("universal(self | where(q - k == 2 or k - q == 2 or q + k == 1))", U),
        ("universal(global([0]) | self)", P),
        ("universal(layers(global([0]) + causal))", R),
        ("universal(causal) at 1", P),
        ("causal & window(4) <= mistral", P),
        ("mistral <= causal & window(4)", R),
        ("mistral <= causal & window(4) at 4", P),
        ("mistral <= causal & window(4) at 5", R),
        ("mistral == causal", R),
        ("mistral == causal at 4K", P),
        ("mistral == causal at 4097", R),
        ("full >= topk(s, 4)", P),
        ("topk(s, 4) == full at 4", U),
        ("hops(mistral) <= 245 at 1_000_000", P),
        ("hops(mistral) < 245 at 1_000_000", R),
        ("hops(mistral) == 245 at 1_000_000", P),
        ("hops(mistral) == 244 at 1_000_000", R),
        ("hops(mistral) >= 245 at 1_000_000", P),
        ("hops(mistral) > 245 at 1_000_000", R),
        ("hops(mistral) <= 2", R),
        ("hops(mistral) <= 500_000", R),
        ("hops(mistral) <= 600_000", U),
        ("hops(streaming_llm) < 1_000_000", R),
        ("hops(streaming_llm) == 978 at 1_000_000", P),
        ("hops(sparse_strided) <= 2", P),
        ("hops(sparse_fixed) < 2", R),
        ("hops(causal & window(512, dilation=4)) <= 1_000_000 at 1_000_000", R),
        ("hops(causal & window(512, dilation=4)) > 2", P),
        ("hops(self) <= 0 at 1", P),
        ("hops(gemma3) <= 6", P),
        ("coverage(gemma3) <= 6", P),
        ("hops(jamba) == 5", P),
        ("coverage(jamba) <= 7", R),
        ("coverage(layers((causal & random(1)) + causal + 5 * none + causal)) <= 5", R),
        ("coverage(layers((causal & random(1)) + causal + 5 * none + causal)) == 6", P),
        ("coverage(layers((causal & topk(s, 1)) + causal + 5 * none + causal)) <= 5", R),
        ("coverage(layers(256 * none + causal)) == 257", U),
        ("hops(causal & (layout(t, 4) | window(8))) <= 9 at 64", P),
        ("hops(causal & (layout(t, 4) | window(8))) <= 8 at 64", U),
        ("hops(causal & (layout(t, 4) | window(8))) >= 1 at 64", P),
        ("hops(causal & (layout(t, 4) | window(8))) >= 2 at 64", U),
        ("hops(causal & layout(t, 4) & window(8)) <= 8 at 64", R),
    ],
)
def test_table(text: str, status: str) -> None:
    found = verdict(text)
    assert found.status == status, found
    assert bool(found) == (status == P)
    assert found.reason


def test_every_shipped_assert_is_proved() -> None:
    for text in (presets_text(), *((CORPUS / f"{name}.pat").read_text() for name in ("asserts", "asserts_words"))):
        for claim in parse_asserts(text):
            assert check(claim), show(claim.line) if claim.line else claim


def test_claims_say_what_was_asked() -> None:
    assert verdict("hops(causal) <= 1_000").claim == "the hop diameter is at most 1,000, for every n"
    assert verdict("coverage(causal) > 2 at 4K").claim == "the hop diameter from any starting layer is above 2, at n = 4,096"
    assert verdict("causal(full)").claim == pc.parse("full").prove_causal().claim
    assert verdict("causal(full) at 3").claim == "no query reads a key after it, at n = 3"
    assert verdict("full == causal at 3").claim == "the pairs are those of 'causal', at n = 3"


def test_numbers_witnesses_and_certificates_are_kept() -> None:
    found = verdict("hops(mistral) <= 244 at 1_000_000")
    assert (found.status, found.value) == (R, 245)
    assert found.witness is not None
    assert found.witness.n == 1_000_000
    assert found.certificate is not None
    assert found.to_json()["certificate"]
    assert verdict("hops(mistral) == 245 at 1_000_000").value == 245
    assert verdict("hops(causal & window(4, dilation=2)) <= 9 at 64").value == math.inf
    for text in (
        "causal(full) at 9",
        "nonempty(none) at 9",
        "self_loops(none) at 9",
        "full <= causal at 9",
        "full == self at 9",
    ):
        found = verdict(text)
        assert found.witness is not None
        assert found.witness.n == 9


# Comparisons


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 6), st.integers(0, 4), st.sampled_from(BOUNDS), st.integers(-1, 9), st.booleans())
def test_comparisons_with_what_is_known_of_a_number(low: int, more: int, sign: str, limit: int, endless: bool) -> None:
    values = [*range(low, low + more + 1), *([math.inf] if endless else [])]
    upper = math.inf if endless else low + more
    held = {{"<=": v <= limit, "<": v < limit, "==": v == limit, ">=": v >= limit, ">": v > limit}[sign] for v in values}
    want = {frozenset([True]): P, frozenset([False]): R}.get(frozenset(held), U)
    if sign == "==" and endless and limit > low + more:
        want = U  # the number may be anything from low on
    if low == upper:
        exact = [Verdict(status, "c", "r", value=low) for status in (P, R)]  # type: ignore[arg-type]
        assert {compared(one, sign, limit, "s").status for one in exact} == {want}
    for found in (bounded("c", low, upper, "r"), bounded("c", low, None if endless else upper, "r")):
        got = compared(found, sign, limit, "s")
        assert (got.status, got.claim, got.reason) == (want, "s", "r")
    part = Verdict("unknown", "c", "r", lower=low)
    assert compared(part, sign, limit, "s").status == compared(bounded("c", low, None, "r"), sign, limit, "s").status


def test_infinity_is_above_every_limit() -> None:
    never = Verdict("refuted", "c", "r", value=math.inf)
    assert [compared(never, sign, 10**9, "s").status for sign in BOUNDS] == [R, R, R, P, P]


def test_estimates_and_open_questions_prove_nothing() -> None:
    for sign in BOUNDS:
        assert compared(unknown("c", "r"), sign, 5, "s").status == U
        guess = compared(estimated("c", 5, "seed 1"), sign, 5, "s")
        assert (guess.status, guess.reason, guess.value) == (U, "an estimate is no proof: seed 1", 5)
    assert compared(unknown("c", "r"), ">=", 0, "s").status == P
    assert compared(unknown("c", "r"), "<", 0, "s").status == R


# Against masks


def layer_masks(pattern: Pattern, n: int, **inputs: object) -> list[Mask]:
    """The layers of one period, heads united."""
    return [
        np.logical_or.reduce([pattern.mask(n, head, layer=layer, **inputs) for head in range(pattern.heads)])
        for layer in range(pattern.layers)
    ]


def depth(layers: list[Mask], start: int, causal: bool) -> float:
    """The hop diameter from a layer up, one layer at a time."""
    n = len(layers[0])
    target = np.tril(np.ones((n, n), bool)) if causal else np.ones((n, n), bool)
    reached, seen, count = np.eye(n, dtype=bool), 0, 0
    while (target & ~reached).any():
        reached, before = (layers[(start + count) % len(layers)] | np.eye(n, dtype=bool)) @ reached, reached
        count += 1
        seen = seen + 1 if (reached == before).all() else 0
        if seen == len(layers):
            return math.inf
    return count


def has_path(mask: Mask) -> bool:
    return any(all(mask[a, b] for a, b in pairwise(order)) for order in permutations(range(len(mask))))


def star(mask: Mask) -> bool:
    each = mask | np.eye(len(mask), dtype=bool)
    return bool((each.all(0) & each.all(1)).any())


def is_true(claim: Claim, n: int) -> bool:
    """What a claim comes to at n, for a pattern without runtime inputs."""
    pattern = Pattern(claim.subject)
    places = [(layer, head) for layer in range(pattern.layers) for head in range(pattern.heads)]
    masks = [pattern.mask(n, head, layer=layer) for layer, head in places]
    layers = layer_masks(pattern, n)
    all_layers = np.logical_and.reduce(layers)
    everything = np.ones((n, n), bool)
    causal = Pattern(claim.subject).prove_causal()
    assume(bool(causal) == (causal.status == P))
    match claim.guarantee:
        case "causal":
            return not any(np.triu(mask, 1).any() for mask in masks)
        case "nonempty":
            return all(mask.any(1).all() for mask in masks)
        case "self_loops":
            return all(np.diagonal(mask).all() for mask in masks)
        case "hub":
            return star(all_layers)
        case "hamiltonian":
            return has_path(np.logical_or.reduce(layers))
        case "universal":
            reads_itself = np.diagonal(all_layers).all()
            joined = depth(layers, 0, causal=False) < math.inf
            return bool(reads_itself and (star(all_layers) or (joined and has_path(np.logical_or.reduce(layers)))))
        case "hops" | "coverage" as measure:
            starts = range(1 if measure == "hops" else pattern.layers)
            return holds(max(depth(layers, start, bool(causal)) for start in starts), claim.operator, claim.limit)
    assert claim.other is not None
    theirs = [Pattern(claim.other).mask(n, head, layer=layer) for layer, head in places]
    if claim.guarantee == EQUAL:
        return all((a == b).all() for a, b in zip(masks, theirs, strict=True))
    return all(not (a & ~b & everything).any() for a, b in zip(masks, theirs, strict=True))


def holds(value: float, sign: str, limit: int) -> bool:
    return {"<=": value <= limit, "<": value < limit, "==": value == limit, ">=": value >= limit, ">": value > limit}[sign]


@st.composite
def static_claims(draw: st.DrawFn, lengths: st.SearchStrategy[int | None]) -> Claim:
    """A claim about a small pattern of inequalities, maybe with a schedule or different heads."""
    one, other = draw(patterns(2)), draw(patterns(2))
    form = draw(st.sampled_from(["{}", "{}", "layers(({}) + ({}))", "layers(2 * ({}) + ({}))", "heads(({}) + ({}))"]))
    n = draw(lengths)
    try:
        subject = pc.parse(form.format(one, other) if "(" in form else one).expression
    except pc.PatternError:
        assume(False)
        raise
    word = draw(st.sampled_from([*PROPERTIES, *MEASURES, *MEASURES, SUBSET, EQUAL]))
    if word in MEASURES:
        return Claim(word, subject, n=n, operator=draw(st.sampled_from(BOUNDS)), limit=draw(st.integers(0, 6)))
    if word in PROPERTIES:
        return Claim(word, subject, n=n)
    # half of the inclusions are true by construction
    against = pc.parse(draw(st.sampled_from([other, f"({one}) | ({other})", one]))).expression
    return Claim(word, pc.parse(one).expression, n=n, other=against)


@settings(max_examples=250, deadline=None)
@given(static_claims(st.integers(1, 6)))
def test_claims_at_one_length_against_masks(claim: Claim) -> None:
    assert claim.n is not None
    found = check(claim)
    if found.status != U:
        assert bool(found) == is_true(claim, claim.n), found


@settings(max_examples=120, deadline=None)
@given(static_claims(st.none()))
def test_claims_for_every_length_against_masks(claim: Claim) -> None:
    """Without a lower bound among them, a claim about all n is proved only where it holds at each."""
    assume(claim.operator not in ("==", ">=", ">"))
    found = check(claim)
    if found:
        for n in (1, 2, 3, 5, 6):
            assert is_true(claim, n), n
    elif found.status == R and claim.guarantee != "universal" and found.witness is not None and found.witness.n <= 6:
        assert not is_true(claim, found.witness.n)


INPUTS = ["({}) & layout(table2, 2)", "({}) | layout(table5, 5)", "({}) & document(ids)", "({}) & topk(scores, 3) | self"]
INPUTS += ["layers((({}) | document(ids)) + (causal & topk(scores, 2)))", "causal & (window(2) | ({}) & layout(table2, 2))"]


@settings(max_examples=80, deadline=None)
@given(patterns(1), st.sampled_from(INPUTS), st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_limits_hold_for_any_runtime_inputs(text: str, form: str, n: int, limit: int, seed: int) -> None:
    pattern = pc.parse(form.format(text))
    inputs = random_inputs(pattern, n, seed=seed)
    finite = {name: np.maximum(given, -1) if given.dtype == float else given for name, given in inputs.items()}
    layers = layer_masks(pattern, n, **finite)
    causal = bool(pattern.prove_causal())
    for word, starts in (("hops", 1), ("coverage", pattern.layers)):
        value = max(depth(layers, start, causal) for start in range(starts))
        if check(Claim(word, pattern.expression, n=n, operator="<=", limit=limit)):
            assert value <= limit
        if check(Claim(word, pattern.expression, n=n, operator=">=", limit=limit)):
            assert value >= limit


DRAWS = ["({}) | random(2)", "causal & (window(2) | random(1))", "layers((causal & random(2)) + (({}) | random(1, block=2)))"]


@settings(max_examples=25, deadline=None)
@given(patterns(1), st.sampled_from(DRAWS), st.sampled_from([None, 2, 5, 9]), st.sampled_from(BOUNDS[:2]), st.integers(0, 5))
def test_limits_hold_for_the_draws(text: str, form: str, n: int | None, sign: str, limit: int) -> None:
    pattern = pc.parse(form.format(text))
    causal = bool(pattern.prove_causal())
    for word in MEASURES:
        if not check(Claim(word, pattern.expression, n=n, operator=sign, limit=limit)):
            continue
        for size in (1, 2, 5, 9) if n is None else (n,):
            layers = layer_masks(pattern, size)
            starts = range(1 if word == "hops" else pattern.layers)
            assert holds(max(depth(layers, start, causal) for start in starts), sign, limit)
