"""The verifier accepts what is true of the pattern and nothing else: every tampered certificate is rejected."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis import verify as verify_module
from patternc.analysis.certificate import (
    Certificate,
    Chain,
    Claim,
    ClosedSet,
    Joint,
    Missing,
    Path,
    Powers,
    Star,
    certificate_from_json,
)
from patternc.analysis.verdict import bounded, proved, unknown
from patternc.analysis.verify import verify
from patternc.diagnostics import PatternError
from patternc.relation import BudgetExceeded
from patternc.testing import patterns

N = 1_000
WINDOW = pc.parse("causal & window(4)")
SCHEDULE = pc.parse("layers(2 * (causal & window(3)) + (causal & stride(10)))")
STARRED = pc.parse("layers((local(4) | global([0])) + (causal & ~causal | global([0, 3])))")
RANDOM = pc.parse("causal & (window(2) | random(3))")

PATH = Path(N, (0, 0), (10, 8, 5))
CLOSED = ClosedSet(N, ((0, 99, 1),), 50, 100)
CHAIN = Chain(N, 10, (((10, 10, 1),), ((7, 10, 1),), ((4, 10, 1),)), (0, 0), 3)
POWERS = Powers(
    N,
    (
        Claim("0 <= q - k and q - k < 4", 0, 1),
        Claim("0 <= q - k and q - k < 7", 0, 2, (0, 0)),
        Claim("0 <= q - k and q - k < 10", 0, 3, (0, 1)),
    ),
    "0 <= q - k and q - k < 9",
    Missing(1, N, 10, 3),
)


@pytest.mark.parametrize("certificate", [PATH, CLOSED, CHAIN, POWERS, Joint((PATH, CHAIN))], ids=lambda c: type(c).__name__)
def test_true_certificates_pass_also_as_json(certificate: Certificate) -> None:
    assert verify(WINDOW, certificate) == []
    again = certificate_from_json(json.loads(json.dumps(certificate.to_json())))
    assert again == certificate
    assert verify(WINDOW, again) == []


FALSE: list[tuple[str, Certificate]] = [
    ("a step too far", replace(PATH, positions=(10, 8, 4))),
    ("forward in time", replace(PATH, positions=(10, 8, 9))),
    ("a position past the end", replace(PATH, positions=(1_000, 999, 998))),
    ("a negative position", replace(PATH, positions=(1, 0, -1))),
    ("too few layers", replace(PATH, layers=(0,))),
    ("no n", replace(PATH, n=0)),
    ("no such layer", replace(PATH, layers=(-1, -2))),
    ("one layer below the lowest", replace(PATH, layers=(-1,), positions=(10, 8))),
    ("a set with a way out", replace(CLOSED, runs=((1, 99, 1),))),
    ("a set that holds k", replace(CLOSED, k=99)),
    ("a set that lacks q", replace(CLOSED, q=100, k=101)),
    ("a set that steps over positions", replace(CLOSED, runs=((0, 98, 2),))),
    ("a run that is none", replace(CLOSED, runs=((0, 99, 0),))),
    ("a run past the end", replace(CLOSED, runs=((0, 1_000, 1),))),
    ("a set too small", replace(CHAIN, sets=(((10, 10, 1),), ((8, 10, 1),), ((4, 10, 1),)))),
    ("a last set that holds k", replace(CHAIN, k=4)),
    ("a chain of another start", replace(CHAIN, start=11)),
    ("a chain below the lowest layer", replace(CHAIN, layers=(-1, -2))),
    ("a chain with one set missing", replace(CHAIN, sets=CHAIN.sets[:2])),
    ("a claim too large", replace(POWERS, claims=(replace(POWERS.claims[0], condition="0 <= q - k < 5"), *POWERS.claims[1:]))),
    ("a claim too small", replace(POWERS, claims=(*POWERS.claims[:2], replace(POWERS.claims[2], condition="q == k")))),
    ("a product too large", replace(POWERS, claims=(*POWERS.claims[:2], replace(POWERS.claims[2], condition="k <= q")))),
    ("a product of too few layers", replace(POWERS, claims=(*POWERS.claims[:2], replace(POWERS.claims[2], layers=2)))),
    ("a claim that rests on itself", replace(POWERS, claims=(*POWERS.claims[:2], replace(POWERS.claims[2], parts=(2, 0))))),
    ("a claim on one part", replace(POWERS, claims=(*POWERS.claims[:2], replace(POWERS.claims[2], parts=(0,))))),
    ("two layers at once", replace(POWERS, claims=(replace(POWERS.claims[0], layers=2), *POWERS.claims[1:]))),
    ("one claim of two layers", Powers(N, (replace(POWERS.claims[0], layers=2),), "0 <= q - k < 3")),
    ("a lower bound that leaves out pairs", Powers(N, (Claim("0 <= q - k < 3", 0, 1),), None, Missing(0, N, 10, 7))),
    ("a target too large", replace(POWERS, target="k <= q")),
    ("a pair that is there", replace(POWERS, missing=Missing(1, N, 10, 4))),
    ("a pair at another n", replace(POWERS, missing=Missing(1, 500, 10, 3))),
    ("a pair outside", replace(POWERS, missing=Missing(1, N, 1_000, 3))),
    ("a pair not wanted", replace(POWERS, target="0 <= q - k < 5")),
    ("a claim that is not there", replace(POWERS, missing=Missing(7, N, 10, 3))),
    ("at no n", replace(POWERS, n=0, missing=None)),
    ("below the lowest layer", Powers(N, (Claim("q == k", -1, 0),), "q == k")),
    ("no claims", replace(POWERS, claims=())),
    ("nothing claimed", replace(POWERS, target=None, missing=None)),
    ("a condition that is none", replace(POWERS, target="k <=")),
    ("one bad part", Joint((PATH, replace(CHAIN, k=4)))),
]


@pytest.mark.parametrize(("what", "certificate"), FALSE, ids=[what for what, _ in FALSE])
def test_false_certificates_are_rejected(what: str, certificate: Certificate) -> None:
    assert verify(WINDOW, certificate) != [], what


def test_layers_of_a_schedule_must_follow_each_other() -> None:
    assert verify(SCHEDULE, Path(N, (2, 1, 0), (50, 30, 28, 26))) == []
    assert verify(SCHEDULE, Path(N, (0, 2), (50, 48, 28))) == []
    assert verify(SCHEDULE, Path(N, (2, 0), (50, 30, 28))) != []
    assert verify(SCHEDULE, Path(N, (1, 0, 2), (50, 30, 28, 26))) != []
    near, far = "0 <= q - k < 3", "k <= q and (q - k) % 10 == 0"
    claims = (Claim(near, 1, 1), Claim(far, 2, 1), Claim("q - k == 12", 1, 2, (0, 1)))
    assert verify(SCHEDULE, Powers(N, claims, "q - k == 12")) == []
    skips = (Claim(near, 0, 1), claims[1], replace(claims[2], first=0))
    assert verify(SCHEDULE, Powers(N, skips, "q - k == 12")) != []
    stays = (Claim(near, 1, 1), Claim(far, 2, 1), Claim("q - k == 2", 1, 2, (0, 0)))
    assert verify(SCHEDULE, Powers(N, stays, "q - k == 2")) != []


def test_a_chain_names_the_layers_that_it_goes_through() -> None:
    sets = (((50, 50, 1),), ((0, 50, 10),), ((0, 8, 10), (8, 10, 1), (18, 20, 1), (28, 30, 1), (38, 40, 1), (48, 50, 1)))
    sets = (*sets[:2], ((0, 0, 1), *sets[2][1:]))
    assert verify(SCHEDULE, Chain(N, 50, sets, (2, 1), 5)) == []
    assert verify(SCHEDULE, Chain(N, 50, sets, (2, 0), 5)) != []
    assert verify(SCHEDULE, Chain(N, 50, sets, (1, 0), 5)) != []


def test_the_upper_part_is_read_first() -> None:
    pattern = pc.parse("layers(where(k == 5) + where(q - k == 1))")
    parts = (Claim("k == 5", 0, 1), Claim("q - k == 1", 1, 1))
    for wanted, holds in (("k == 5 and q >= 1", True), ("k == 4", False)):
        claims = (*parts, Claim(wanted, 0, 2, (0, 1)))
        assert (verify(pattern, Powers(N, claims, wanted, residual=False)) == []) == holds


def test_a_stay_needs_a_residual_stream_or_an_edge() -> None:
    past = pc.parse("causal & window(4) - self")
    assert verify(past, Path(N, (0,), (5, 5))) == []
    assert verify(past, Path(N, (0,), (5, 5), residual=False)) != []
    assert verify(WINDOW, Path(N, (0,), (5, 5), residual=False)) == []


def test_drawn_keys_count_as_edges_only_where_they_are_drawn() -> None:
    row = {k for a, b, s in RANDOM.row(900, N) for k in range(a, b + 1, s)}
    drawn = min(row)
    other = next(k for k in range(900) if k not in row)
    assert verify(RANDOM, Path(N, (0,), (900, drawn))) == []
    assert verify(RANDOM, Path(N, (0,), (900, other))) != []
    past = next(k for k, _, _ in RANDOM.row(N, 2 * N) if k < N - 10)
    assert verify(RANDOM, Path(2 * N, (0,), (N, past))) == []
    assert verify(RANDOM, Path(N, (0,), (N, past))) != []


@pytest.mark.parametrize(
    "expression", ["random(2)", "random(1, block=4)", "stride(2) & random(2)", "random(2) & random(2, seed=5)"]
)
@pytest.mark.parametrize("n", [7, 64, 1_500])
def test_closed_sets_under_draws(expression: str, n: int) -> None:
    pattern = pc.parse(expression)
    reached, mask = np.zeros(n, bool), pattern.mask(n)
    reached[n - 1] = True
    for _ in range(n):
        reached |= mask[reached].any(0)
    runs = tuple((int(x), int(x), 1) for x in np.flatnonzero(reached))
    outside = np.flatnonzero(~reached)
    k = int(outside[0]) if len(outside) else n - 1
    complaints = verify(pattern, ClosedSet(n, runs, n - 1, k))
    assert (complaints == []) == bool(len(outside)), complaints
    if len(runs) > 1:
        assert verify(pattern, ClosedSet(n, runs[:-2] + runs[-1:], n - 1, runs[-2][0])) != []


def test_sets_of_many_runs_are_checked_by_running_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "MAX_EXACT_RUNS", 0)
    for certificate in (CLOSED, CHAIN):
        assert verify(WINDOW, certificate) == []
    for what, certificate in FALSE:
        if isinstance(certificate, ClosedSet | Chain):
            assert verify(WINDOW, certificate) != [], what


@settings(max_examples=60, deadline=None)
@given(text=patterns(max_depth=2, choices=True), n=st.integers(2, 24), data=st.data())
def test_closure_is_decided_as_by_masks(text: str, n: int, data: st.DataObject) -> None:
    inside = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    assume(inside.any() and not inside.all())
    limit = data.draw(st.sampled_from([0, 256]))
    try:
        pattern = pc.parse(text)
        mask = pattern.mask(n)
    except (PatternError, BudgetExceeded):
        assume(False)
    closed = ClosedSet(
        n, tuple((int(x), int(x), 1) for x in np.flatnonzero(inside)), int(inside.argmax()), int(inside.argmin())
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "MAX_EXACT_RUNS", limit)
        assert (verify(pattern, closed) == []) == (not mask[inside][:, ~inside].any())


def test_a_verdict_must_say_what_its_certificate_shows() -> None:
    assert verify(WINDOW, replace(proved("", "", value=3, certificate=POWERS))) == []
    assert verify(WINDOW, proved("", "", value=2, certificate=POWERS)) != []
    assert verify(WINDOW, proved("", "", value=4, certificate=POWERS)) != []
    assert verify(WINDOW, proved("", "", value=2, certificate=replace(POWERS, missing=None))) != []
    assert verify(WINDOW, proved("", "", value=2, certificate=CLOSED)) != []
    assert verify(WINDOW, proved("", "", value=2, certificate=replace(POWERS, missing=None, target="q == k"))) != []
    for value, accepted in ((1, False), (2, True), (3, False)):
        assert (verify(WINDOW, proved("", "", value=value, certificate=PATH)) == []) == accepted
    for value, accepted in ((2, False), (3, True), (4, False)):
        assert (verify(WINDOW, proved("", "", value=value, certificate=CHAIN)) == []) == accepted
    assert verify(WINDOW, bounded("", 1, 3, "", CHAIN)) == []
    nowhere = replace(POWERS, missing=Missing(7, N, 10, 3))
    assert verify(WINDOW, proved("", "", value=3, certificate=nowhere)) != []
    assert verify(WINDOW, proved("", "", value=3, certificate=replace(nowhere, claims=()))) != []
    assert verify(WINDOW, unknown("", "")) == ["there is no certificate"]


def test_runtime_inputs_count_by_mode() -> None:
    pattern = pc.parse("causal & (window(2) | layout(t, 4))")
    path = Path(N, (0,), (500, 3))
    assert verify(pattern, path, "may") == []
    assert verify(pattern, path, "must") != []


def test_sets_at_every_n_and_past_what_fits_in_memory() -> None:
    for_all = Chain(None, 10, (((10, 10, 1),), ((7, 10, 1),)), (0,), 6)
    assert verify(WINDOW, for_all) == []
    assert verify(WINDOW, replace(for_all, sets=(((10, 10, 1),), ((8, 10, 1),)))) != []
    assert verify(WINDOW, ClosedSet(10**9, ((0, 10**8, 1),), 5, 10**9 - 1)) == []
    huge = ClosedSet(10**9, ((0, 10**8, 1),), 5, 10**9 - 1)
    assert verify(pc.parse("window(2) | random(3)"), huge)[-1] == "its sets are too large to check"


def test_draws_that_stay_inside_need_not_be_listed() -> None:
    early = ClosedSet(10**9, ((0, 10, 1),), 5, 11)
    assert verify(pc.parse("causal & random(1)"), early) == []
    assert verify(pc.parse("random(1)"), early) == ["its sets are too large to check"]
    alone = ClosedSet(50, ((7, 7, 1),), 7, 3)
    for expression in ("causal & document(ids) & topk(s, 2)", "document(ids) & random(3)"):
        assert verify(pc.parse(expression), alone, "must") == []
        assert verify(pc.parse(expression), alone, "may") != []
    both = pc.parse("layout(t, 1) & topk(s, 9) | topk(r, 9) - layout(t, 1)")
    assert verify(both, ClosedSet(5, ((2, 2, 1),), 2, 3), "must") != [], "one of the two picks holds each pair"


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "VERIFY_BUDGET", 50)
    assert verify(WINDOW, POWERS) == ["it could not be checked within the operation budget"]


def test_json_that_is_no_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="no certificate of kind 'Sum'"):
        certificate_from_json({"kind": "Sum"})
    fields = PATH.to_json()
    for wrong in ({"n": "4"}, {"layers": [0.0, 0]}, {"positions": 3}, {"residual": 1}, {"layers": [True, 0]}):
        with pytest.raises(ValueError, match="a certificate of kind 'Path' has other fields"):
            certificate_from_json({**fields, **wrong})
    with pytest.raises(ValueError, match="of kind 'Star' has other fields: 'n'"):
        certificate_from_json({"kind": "Star"})
    with pytest.raises(ValueError, match="of kind 'Star' has other fields: 0 is not text"):
        certificate_from_json({"kind": "Star", "n": None, "center": 0})
    with pytest.raises(ValueError, match="no certificate of kind None"):
        certificate_from_json({"kind": "Joint", "parts": [5]})


def test_stars() -> None:
    star = Star(None, "q == 0")
    assert verify(STARRED, star) == []
    assert certificate_from_json(json.loads(json.dumps(star.to_json()))) == star
    assert verify(STARRED, proved("", "", value=0, certificate=star)) == []
    assert verify(STARRED, proved("", "", certificate=star)) == []
    for n in (1, 2, 10**9):
        assert verify(STARRED, Star(n, "q == 0")) == []
    for value in (1, -1, math.inf):
        assert verify(STARRED, proved("", "", value=value, certificate=star)) != []
    for center in ("q <= 1", "q == 3", "q == n - 1", "false", "q == 0 and n > 1", "q =="):
        assert verify(STARRED, Star(None, center)) != [], center
    assert verify(pc.parse("local(4) | global([3])"), Star(9, "q == 3")) == []
    assert verify(pc.parse("local(4) | global([3])"), Star(3, "q == 3")) == ["there is some n without such a position"]
    assert verify(STARRED, Star(0, "q == 0")) == ["0 is not a sequence length"]


@pytest.mark.parametrize(
    "expression",
    [
        "columns([0])",
        "rows([0])",
        "rows([0]) | topk(s, 1)",
        "rows([0]) | layout(t, 4)",
        "rows([0]) | random(256)",
        "heads(rows([0]) + window(2))",
        "layers(full + columns([0]))",
    ],
)
def test_a_star_must_be_there_whatever_the_inputs(expression: str) -> None:
    for mode in ("may", "must"):
        assert verify(pc.parse(expression), Star(None, "q == 0"), mode) != []
