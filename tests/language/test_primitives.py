"""Each primitive, as a relation, against its own plain-Python oracle."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patternc import parse
from patternc.language.primitives import PRIMITIVES
from patternc.language.resolve import RESERVED

LENGTHS = (1, 2, 7, 16, 33, 64, 100)
sizes = st.one_of(st.integers(1, 12), st.sampled_from([16, 33, 64, 99, 100, 101, 5000]))
counts = st.one_of(st.integers(0, 12), st.sampled_from([33, 99, 100, 5000]))


@st.composite
def windows(draw: st.DrawFn) -> dict[str, object]:
    sides = draw(st.sampled_from([("w",), ("left",), ("right",), ("left", "right")]))
    found: dict[str, object] = {side: draw(sizes if side == "w" else counts) for side in sides}
    return found | draw(st.sampled_from([{}, {"dilation": 1}, {"dilation": 2}, {"dilation": 7}, {"dilation": 200}]))


@st.composite
def summaries(draw: st.DrawFn) -> dict[str, object]:
    period = draw(sizes)
    columns = draw(st.integers(1, period))
    return {"l": period, "c": columns, "slot": draw(st.integers(0, period // columns - 1))}


@st.composite
def positions(draw: st.DrawFn) -> dict[str, object]:
    places = st.integers(-110, 110)
    ranges = draw(st.lists(st.tuples(places, places), min_size=1, max_size=4))
    return {"G": tuple((a, b) if (a < 0) != (b < 0) or a <= b else (b, a) for a, b in ranges)}


ARGUMENTS: dict[str, st.SearchStrategy[dict[str, object]]] = {
    **{name: st.just({}) for name in ("full", "none", "self", "causal")},
    "window": windows(),
    "local": st.fixed_dictionaries({"w": sizes}),
    "stride": st.fixed_dictionaries({"s": sizes}),
    "summary": summaries(),
    "chunk": st.fixed_dictionaries({"c": sizes}),
    "blocks": st.fixed_dictionaries({"b": sizes, "left": counts, "right": counts}),
    "sinks": st.fixed_dictionaries({"s": sizes}),
    **{name: positions() for name in ("rows", "columns", "global")},
}
STATIC = sorted(name for name, primitive in PRIMITIVES.items() if primitive.oracle is not None)


def written(name: str, arguments: dict[str, object]) -> str:
    def value(given: object) -> str:
        return f"[{', '.join(f'{a}..{b}' for a, b in given)}]" if isinstance(given, tuple) else str(given)

    return f"{name}({', '.join(f'{key}={value(given)}' for key, given in arguments.items())})"


def test_every_static_primitive_is_tested() -> None:
    assert ARGUMENTS.keys() == set(STATIC)
    assert PRIMITIVES.keys() - set(STATIC) == {"random", "layout", "document", "topk"}


@pytest.mark.parametrize("name", STATIC)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_relation_is_the_oracle(name: str, data: st.DataObject) -> None:
    arguments = data.draw(ARGUMENTS[name])
    oracle = PRIMITIVES[name].oracle
    assert oracle is not None
    pattern = parse(written(name, arguments))
    for n in LENGTHS:
        q, k = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
        assert np.array_equal(pattern.mask(n), oracle(q, k, n, **arguments)), (str(pattern), n)
        pair = data.draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))
        assert pattern.meaning().static.contains(*pair, n) == bool(oracle(*pair, n, **arguments))


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_documented(name: str) -> None:
    primitive = PRIMITIVES[name]
    assert primitive.name == name
    assert name in RESERVED
    assert len(primitive.summary) >= 8
    assert primitive.summary.endswith(".")
    assert parse(primitive.example).expression is not None
    assert re.match(rf"{name}\b", primitive.example)
    specification = (Path(__file__).resolve().parents[2] / "grammar" / "SPEC.md").read_text("utf-8")
    for parameter in inspect.signature(primitive.build).parameters:
        assert re.search(rf"`[^`]*\b{name}\([^`]*\b{parameter}\b", specification), (
            f"SPEC.md does not show '{parameter}' of '{name}'"
        )
    assert f"`{name}" in specification


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [  # how many keys a query in the middle reads: the conventions of other libraries
        ("causal & window(8)", 8),
        ("window(8)", 15),
        ("window(left=8, right=0)", 9),
        ("window(left=7)", 8),
        ("local(8)", 9),
        ("local(9)", 9),
        ("causal & window(8, dilation=3)", 8),
        ("window(left=2, right=3, dilation=5)", 6),
        ("chunk(8)", 8),
        ("blocks(8, 1, 1)", 24),
        ("blocks(8, 2, 0)", 24),
        ("sinks(5)", 5),
        ("summary(10, 3)", 18),
    ],
)
def test_how_many_keys(pattern: str, keys: int) -> None:
    assert parse(pattern).mask(60)[29].sum() == keys
