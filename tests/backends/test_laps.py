"""How work is spread among programs that stay: no program has much more than its part."""

import pytest

import patternc as pc
from patternc.backend import Request
from patternc.backends import laps
from patternc.runtime.compile import plan_for

REQUEST = Request("cuda", "bfloat16", 128, 128, 0, 9)


@pytest.mark.parametrize(
    ("text", "shift"),
    [
        ("causal & stride(64)", laps.SHIFT),  # to and fro, one program had 1.37 times its part
        ("causal & (chunk(256) | summary(256, 8))", laps.SHIFT),
        ("causal & chunk(4096)", 0),  # whose rows get longer thirty-two by thirty-two
        ("causal & window(1024)", 0),  # all alike: the first of two that are as good
    ],
)
def test_the_better_of_two(text, shift):
    plan = plan_for(pc.parse(text), None, "gluon", REQUEST)
    assert [laps.shift_for(group, plan.tile, True) for group in plan.heads] == [shift] * len(plan.heads)


def test_none_has_much_more_than_its_part():
    for text in ("causal & stride(64)", "causal & (chunk(256) | summary(256, 8))", "causal & (window(256) | stride(256))"):
        plan = plan_for(pc.parse(text), None, "gluon", REQUEST)
        for groups, tile, last_first in ((plan.heads, plan.tile, True), (plan.keys, plan.key_tile, False)):
            for group in groups:
                works = laps.works_of(group, tile, last_first)
                programs = laps.PROCESSORS * (1 if tile.rows > 64 else 2)
                shift = laps.shift_for(group, tile, last_first)
                assert laps.longest(works, programs, shift) < 1.1 * works.sum() / programs, (text, group.rows)
