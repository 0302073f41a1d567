"""The kernel that picks the best-scoring keys, in Triton's interpreter, against a sort and against what it stands in for."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from patternc.backends import triton_picks  # noqa: E402 - needs triton
from patternc.runtime import picking  # noqa: E402 - needs torch

BLOCK = 32  # so that rows of some hundred keys fill lists, and guesses are made for them
GARBAGE = 77


@contextmanager
def garbage(monkeypatch):
    """Memory that is allocated holds garbage, and what lies around it is left alone; gives what is allocated."""
    empty, inside, around = torch.empty, [], []

    def filled(*shape, **options):
        sizes = shape[0] if isinstance(shape[0], tuple) else shape
        count = int(np.prod(sizes))
        whole = empty(count + 2 * BLOCK, **options).fill_(GARBAGE)
        around.append((whole[:BLOCK], whole[BLOCK + count :]))
        inside.append(whole[BLOCK : BLOCK + count].view(sizes))
        return inside[-1]

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", filled)
        yield inside
    assert all((side == GARBAGE).all() for sides in around for side in sides)


def oracle(scores, may, forced, held, most):
    """The picks of each row in a list, by a stable sort."""
    given = [np.asarray(scores.float()), *(None if t is None else np.asarray(t) for t in (may, forced, held))]
    shape = np.broadcast_shapes(*(t.shape for t in given if t is not None))
    values, *marks = (None if t is None else np.broadcast_to(t, shape) for t in given)
    may, forced, held = (
        np.full(shape, default) if t is None else t for t, default in zip(marks, (True, False, False), strict=True)
    )
    lists = []
    for at in np.ndindex(shape[:3]):
        first = {key for key in range(shape[3]) if may[at][key] and forced[at][key]}
        others = [key for key in range(shape[3]) if may[at][key] and key not in first and values[at][key] > -np.inf]
        best = sorted(others, key=lambda key, at=at: -values[at][key])[: max(0, most - len(first))]
        lists.append(sorted(key for key in first | set(best) if not held[at][key]))
    return shape, lists


def check(scores, may=None, forced=None, held=None, most=10, spare=0, **options):
    shape, lists = oracle(scores, may, forced, held, most)
    width = max(map(len, lists), default=0) + spare
    expected = torch.full((len(lists), width), -1, dtype=torch.int32)
    for row, keys in zip(expected, lists, strict=True):
        row[: len(keys)] = torch.tensor(keys)
    with pytest.MonkeyPatch.context() as patch, garbage(patch):
        found = triton_picks.ranked(scores, may, forced, held, most, width, **{"block": BLOCK, **options})
    assert found.dtype == torch.int32
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected.view(*shape[:3], width), rtol=0, atol=0)
    if most and shape[3]:
        torch.testing.assert_close(found, in_torch(scores, may, forced, held, most, width), rtol=0, atol=0)
    return found


def in_torch(scores, may, forced, held, most, width):
    """The same by the functions that the kernel stands in for."""
    shape = torch.broadcast_shapes(*(t.shape for t in (scores, may, forced, held) if t is not None))
    may = torch.ones(shape, dtype=torch.bool) if may is None else may.expand(shape)
    held = torch.tensor(False) if held is None else held
    return picking.picks(scores.float().expand(shape), may, forced if forced is None else forced & may, held, most, width)


def random_scores(shape, kind, rng):
    """Scores that are all different, often the same, or special."""
    special = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0]
    values = {
        "different": rng.standard_normal(shape),
        "few": rng.integers(-2, 3, shape),
        "same": np.zeros(shape),
        "special": rng.choice(special, shape),
        "rare": np.where(rng.random(shape) < 0.03, rng.standard_normal(shape), -np.inf),
        "up": np.sort(rng.standard_normal(shape), -1),
        "down": -np.sort(rng.standard_normal(shape), -1),
    }
    return torch.tensor(values[kind].astype(np.float32))


KINDS = ["different", "few", "same", "special", "rare", "up", "down"]


def random_marks(shape, often, rng):
    return None if often is None else torch.tensor(rng.random(shape) < often)


@st.composite
def calls(draw):
    """The arguments of `check`; scores and masks share some axes."""
    most_keys = st.integers(1, 60) | st.integers(100, 260)
    sizes = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(most_keys)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    often = st.sampled_from([None, None, 0.0, 0.05, 0.5, 0.9, 1.0])

    def shared(axes):
        return tuple(1 if i < axes and draw(st.booleans()) else size for i, size in enumerate(sizes))

    given = [random_scores(shared(2), draw(st.sampled_from(KINDS)), rng)]
    given += [random_marks(shared(4), draw(often), rng) for _ in range(3)]
    return given, draw(st.integers(0, 20) | st.integers(0, sizes[3] + 3)), draw(st.integers(0, 3))


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
@given(calls())
def test_random_calls(call):
    given, most, spare = call
    check(*given, most=most, spare=spare)


@pytest.mark.parametrize("kind", KINDS)
def test_long_rows(kind):
    """Lists fill up, again and again where scores rise."""
    rng = np.random.default_rng(1)
    scores = random_scores((1, 1, 1, 700), kind, rng)
    check(scores, most=20)
    check(scores, random_marks((1, 1, 1, 700), 0.5, rng), most=40)


def test_many_picks():
    """Of a list of several blocks."""
    rng = np.random.default_rng(2)
    check(random_scores((1, 1, 1, 400), "different", rng), most=120)
    check(random_scores((1, 1, 1, 400), "few", rng), random_marks((1, 1, 1, 400), 0.7, rng), most=120, spare=1)


def sampled(m):
    """The keys of a row that the first bound is guessed from."""
    slot = np.arange(BLOCK)
    part, width = slot // 8, m // (BLOCK // 8)
    return part * width + (part * 40503 % 65536 * (width - 7) >> 16) + slot % 8


@pytest.mark.parametrize("forced", [False, True])
def test_guesses_that_are_too_high(forced):
    """Most of the best keys are in the sample, but they are too few."""
    m, most = 400, BLOCK + 8
    scores = torch.randn(1, 1, 1, m, generator=torch.manual_seed(3))
    high = torch.zeros(1, 1, 1, m, dtype=torch.bool)
    high[..., sampled(m)] = True
    check(scores, None, high if forced else None, most=most)
    check(scores + 100 * high, most=most)
    check(scores.masked_fill(high, torch.inf), most=most)
    check(scores.round().masked_fill(high, 0.0), most=most)


def test_samples_lie_within_the_row():
    for m in (*range(4 * BLOCK + 1, 6 * BLOCK), 12345):
        places = sampled(m)
        assert len(set(places)) == BLOCK
        assert places.min() >= 0
        assert places.max() < m


@pytest.mark.parametrize("often", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("most", [0, 1, 30])
def test_forced_keys_are_all_picked(most, often):
    """Also if a list cannot hold them, and if their scores are none."""
    rng = np.random.default_rng(4)
    m = 400
    forced, held = random_marks((1, 1, 2, m), often, rng), random_marks((1, 1, 1, m), 0.3, rng)
    scores = random_scores((1, 1, 2, m), "special", rng)
    check(scores, None, forced, None, most=most)
    check(scores, random_marks((1, 1, 1, m), 0.6, rng), forced, held, most=most, spare=2)


def test_infinite_scores():
    scores = torch.full((1, 1, 1, 300), torch.inf)
    check(scores, most=7)
    check(scores, None, torch.arange(300).view(1, 1, 1, 300) % 100 == 50, most=7)
    check(-scores, most=7, spare=3)
    check(scores * torch.nan, most=7, spare=3)
    check(scores * torch.nan, None, torch.arange(300).view(1, 1, 1, 300) > 295, most=7, spare=3)


def test_zeros_of_both_signs_are_equal():
    scores = torch.zeros(1, 1, 1, 400)
    scores[..., ::2] = -0.0
    scores[..., 5::7] = -1e-45
    scores[..., 3::50] = 1e-45
    for most in (3, 30, 345):
        check(scores, most=most)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype):
    scores = torch.randn(1, 2, 2, 150, generator=torch.manual_seed(5)).to(getattr(torch, dtype))
    check(scores, most=9)


def test_any_steps():
    """Tensors that are views of others, with any strides, none among them."""
    whole = torch.randn(2, 6, 64, 160, generator=torch.manual_seed(6))
    for scores in (whole[:, ::5, 3:60:30, 16:], whole[:1, :1, :2, ::2], whole[:1, :2].transpose(2, 3)[:, :, :1]):
        rows, m = scores.shape[2:]
        marks = torch.rand(2, 2 * m, 2 * m, generator=torch.manual_seed(7)) < 0.5
        shape = 2, 2, rows, m
        check(scores, marks[:, :rows, None, ::2].transpose(0, 1)[:1, 1:], most=5)
        check(
            scores.expand(shape),
            marks[0].T[:rows, :m],
            marks[1, m:][:rows, :1].expand(shape) & (whole[:1, :1, :1, :1] > 9),
            most=5,
        )
        check(scores, marks[0, :1, :m].expand(shape), None, marks[1, :rows, :1].expand(rows, m), most=5, spare=1)


@pytest.mark.parametrize("programs", [1, 3, 100])
def test_programs_share_rows(programs):
    rng = np.random.default_rng(8)
    scores, held = random_scores((2, 2, 2, 200), "few", rng), random_marks((2, 1, 2, 200), 0.5, rng)
    check(
        scores, random_marks((1, 2, 2, 200), 0.7, rng), random_marks((2, 2, 1, 200), 0.01, rng), held, most=9, programs=programs
    )


def test_programs_have_lists_of_their_own():
    with pytest.MonkeyPatch.context() as patch, garbage(patch) as allocated:
        triton_picks.ranked(torch.zeros(1, 2, 3, 90), None, None, None, 5, 5, block=BLOCK, programs=4)
    _, lists = allocated
    assert lists.shape[0] == 4
    assert (lists[:, 0] != GARBAGE).all()


@pytest.mark.parametrize("m", [1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 129, 160])
def test_lengths(m):
    scores = random_scores((1, 1, 1, m), "different", np.random.default_rng(9))
    for most in {1, m - 1, m, m + 5}:
        check(scores, most=most, spare=1)


@pytest.mark.parametrize("shape", [(1, 1, 0, 9), (1, 1, 3, 0), (0, 2, 3, 9), (2, 0, 3, 9)])
def test_nothing_to_pick(shape):
    may = torch.ones(1, 1, *shape[2:], dtype=torch.bool)
    for masks in ((None, None), (may, None), (may, may)):
        found = triton_picks.ranked(torch.zeros(shape), *masks, None, 4, 5)
        assert found.shape == (*shape[:3], 5)
        assert found.dtype == torch.int32
        assert (found == -1).all()


def test_lists_of_no_width():
    held = torch.ones(1, 1, 1, 9, dtype=torch.bool)
    assert triton_picks.ranked(torch.zeros(2, 1, 3, 9), None, None, held, 4, 0).shape == (2, 1, 3, 0)
    assert (triton_picks.ranked(torch.zeros(2, 1, 3, 9), None, None, None, 0, 2) == -1).all()


def test_no_more_than_the_width_is_written():
    """What the width has no place for is lost, and nothing else."""
    with pytest.MonkeyPatch.context() as patch, garbage(patch):
        found = triton_picks.ranked(torch.zeros(1, 1, 3, 90), None, None, None, 40, 4, block=BLOCK)
        forced = triton_picks.ranked(torch.zeros(1, 1, 3, 90), None, torch.ones(90, dtype=torch.bool), None, 2, 4, block=BLOCK)
    for lists in (found, forced):
        assert lists.view(3, 4).tolist() == 3 * [[0, 1, 2, 3]]
