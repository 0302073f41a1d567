"""What selections are forced to pick is held in every proof; what they choose may be held."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.analysis.selectors import may, must
from patternc.testing import patterns, random_inputs

N = 24


def pairs(relation, n: int = N) -> np.ndarray:
    return np.array([[relation.contains(q, k, n) for k in range(n)] for q in range(n)])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_forced_pairs_are_held_whatever_the_scores(data: st.DataObject) -> None:
    """And nothing else is, of one selection with more candidates than it keeps: some scores leave each other pair out."""
    beside = data.draw(st.sampled_from(["causal", "full", "window(9)", "causal & stride(2)"]))
    force = data.draw(patterns(max_depth=2))
    k, block = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 1, 3, 4]))
    pattern = pc.parse(f"({beside}) & topk(s, {k}, block={block}, force={force})")
    sure = pairs(pattern.meaning().static)
    allowed, wanted = pc.parse(beside).mask(N), pc.parse(force).mask(N)
    blocks = np.arange(N) // block
    same = np.array([[wanted[q, blocks == blocks[key]].any() for key in range(N)] for q in range(N)])
    assert np.array_equal(sure, allowed & same)
    for seed in range(6):
        mask = pattern.mask(N, s=random_inputs("topk(s, 1)", N, seed=seed)["s"])
        assert not (sure & ~mask).any()
        assert not (mask & ~allowed).any()
    low = pattern.mask(N, s=np.full((N, N), -np.inf))
    assert np.array_equal(low, sure)


def test_proofs() -> None:
    assert pc.parse("causal & topk(exact, 4, force=self)").prove_self_loops()
    assert pc.parse("causal & topk(exact, 4)").prove_self_loops().status == "refuted"
    assert pc.parse("causal & topk(exact, 4, force=self | window(2))").hamiltonian_path()
    assert pc.parse("causal & document(ids) & topk(exact, 4, force=self)").prove_self_loops()
    assert pc.parse("causal & topk(meanpool(8), 2, block=8, force=self)").is_subset("causal")
    moba = pc.parse("causal & topk(meanpool(8), 2, block=8, force=self)")
    assert pc.parse("causal & chunk(8)").is_subset(moba)  # the own block: all that is allowed of it
    assert not pc.parse("full & topk(exact, 4, force=where(k == q + 1))").prove_causal()


def test_beside_other_choices_nothing_is_sure_that_they_may_leave_out() -> None:
    drawn = pc.parse("causal & random(4) & topk(exact, 2, force=self)")
    assert drawn.meaning().static.is_empty()
    two = pc.parse("causal & topk(s, 2, force=self | sinks(1)) & topk(t, 2, force=self)")
    assert np.array_equal(pairs(two.meaning().static), np.eye(N, dtype=bool))
    assert two.prove_self_loops()
    assert not pc.parse("causal & topk(s, 2, force=self) & topk(t, 2)").prove_self_loops()


def test_scores_at_their_worst_and_best() -> None:
    pattern = pc.parse("causal & topk(s, 3, force=self | sinks(1))")
    sure = must(pattern, 1, N)
    assert np.array_equal(sure & pc.parse("causal").mask(N), sure)
    assert (sure >= pc.parse("self | causal & sinks(1)").mask(N)).all()
    assert not sure[20, 10]
    assert np.array_equal(may(pattern, 1, N), pc.parse("causal").mask(N))


@pytest.mark.parametrize("name", ["topk_attention", "dsa", "moba", "moba_layers", "nsa", "nsa_selected"])
def test_presets_of_published_selections_are_explained(name: str) -> None:
    from patternc.report.explain import explain

    pattern = pc.preset(name)
    assert pattern.prove_causal()
    assert pattern.prove_nonempty()
    shown = explain(pattern).to_json()
    assert [verdict["status"] for verdict in shown["verdicts"]][:2] == ["proved", "proved"]


def test_published_parameters() -> None:
    """MoBA: 12 blocks of 4,096; NSA: 16 blocks of 64, of which the first and two near ones are sure, and 512 keys."""
    (moba,) = pc.preset("moba").meaning().picks[0].choices
    assert (moba.k, moba.block, str(moba.scorer)) == (12, 4096, "meanpool(4096)")
    (nsa,) = pc.preset("nsa_selected").meaning().picks[0].choices
    assert (nsa.k, nsa.block, nsa.share, str(nsa.scorer)) == (16, 64, "group", "compressed(32, 16)")
    assert pc.preset("nsa_selected").meaning().static.row(1000, 2000) == [(0, 63, 1), (896, 1000, 1)]
    (dsa,) = pc.preset("dsa").meaning().picks[0].choices
    assert (dsa.k, str(dsa.scorer)) == (2048, "indexer(heads=64, dim=128)")
    layers = pc.preset("moba_layers")
    assert layers.layers == 32
    assert [layers.layer(i).equivalent("causal").holds for i in (29, 30, 31)] == [True] * 3
    assert str(layers.layer(28)) == str(pc.preset("moba"))
