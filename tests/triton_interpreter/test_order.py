"""The order in which programs that stay take up work, in Triton's interpreter."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402 - needs triton

from patternc.backends import laps  # noqa: E402
from patternc.backends.gluon_kernel import laps_of, work_of  # noqa: E402

SHIFTS = [0, laps.SHIFT]


@triton.jit
def take(order, works, MOST: tl.constexpr, SHIFT: tl.constexpr):
    for lap in range(laps_of(works, SHIFT)):
        tl.store(order + tl.program_id(0) * MOST + lap, work_of(lap, SHIFT))


def order_of(programs, works, shift=0):
    """The works that each program takes up, in order."""
    most = works + 1
    order = torch.full((programs, most), -1, dtype=torch.int32)
    take[(programs, 1, 1)](order, works, most, shift)
    return [[work for work in row if work >= 0] for row in order.tolist()]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("programs", [1, 2, 3, 5, 8])
def test_every_work_is_taken_up_once(programs, shift):
    for works in range(4 * programs + 2):
        order = order_of(programs, works, shift)
        assert sorted(work for mine in order for work in mine) == list(range(works))
        assert max(map(len, order)) - min(map(len, order)) <= 1


def test_programs_go_to_and_fro():
    """Two laps are worth the same to all, where the work gets shorter evenly."""
    assert order_of(4, 12) == [[0, 7, 8], [1, 6, 9], [2, 5, 10], [3, 4, 11]]
    assert {sum(works) for works in order_of(6, 24)} == {46}


def test_programs_are_shifted():
    """By a third, less what is lost to rounding."""
    assert order_of(7, 21, laps.SHIFT) == [[i, 7 + (i + 2) % 7, 14 + (i + 4) % 7] for i in range(7)]


@pytest.mark.parametrize("shift", SHIFTS)
def test_programs_enough_for_all_take_one_each(shift):
    """As those of long rows are: in the order in which they are started."""
    assert order_of(5, 5, shift) == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_choice_knows_the_order(shift):
    """What the choice takes for the longest program is what the kernels do."""
    for programs, works in ((7, 40), (12, 12), (12, 37), (5, 3)):
        lengths = np.random.default_rng(works).integers(1, 20, works)
        wanted = max(sum(lengths[work] for work in mine) for mine in order_of(programs, works, shift))
        assert laps.longest(lengths, programs, shift) == wanted
