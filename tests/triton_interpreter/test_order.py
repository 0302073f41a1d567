"""The order in which programs that stay take up work, in Triton's interpreter."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402 - needs triton

from patternc.backends.gluon_kernel import laps_of, work_of  # noqa: E402


@triton.jit
def take(order, works, MOST: tl.constexpr):
    for lap in range(laps_of(works)):
        tl.store(order + tl.program_id(0) * MOST + lap, work_of(lap))


def order_of(programs, works):
    """The works that each program takes up, in order."""
    most = works + 1
    order = torch.full((programs, most), -1, dtype=torch.int32)
    take[(programs, 1, 1)](order, works, most)
    return [[work for work in row if work >= 0] for row in order.tolist()]


@pytest.mark.parametrize("programs", [1, 2, 3, 5, 8])
def test_every_work_is_taken_up_once(programs):
    for works in range(4 * programs + 2):
        order = order_of(programs, works)
        assert sorted(work for mine in order for work in mine) == list(range(works))
        assert max(map(len, order)) - min(map(len, order)) <= 1


def test_programs_go_to_and_fro():
    """Two laps are worth the same to all, where the work gets shorter evenly."""
    assert order_of(4, 12) == [[0, 7, 8], [1, 6, 9], [2, 5, 10], [3, 4, 11]]
    assert {sum(works) for works in order_of(6, 24)} == {46}


def test_programs_enough_for_all_take_one_each():
    """As those of long rows are: in the order in which they are started."""
    assert order_of(5, 5) == [[0], [1], [2], [3], [4]]
