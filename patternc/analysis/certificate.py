"""What a verdict can be checked with: plain values, read by `patternc.analysis.verify` without the engines that made them.

Layers are counted from 0 at the bottom; a schedule repeats, so layer i uses the pattern of layer i modulo its period. A
*step* of a layer goes from a query to a key that the layer lets it read or, where the layer has a residual stream
(``residual``), stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

Run: TypeAlias = tuple[int, int, int]
"""The positions first, first + step, ..., last."""
Runs: TypeAlias = tuple[Run, ...]


@dataclass(frozen=True)
class Path:
    """A way from a query to a key: ``positions[i]`` reads ``positions[i + 1]`` in layer ``layers[i]``, top layer first.

    The layers are consecutive and descend.
    """

    n: int
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    residual: bool = True

    def to_json(self) -> dict[str, Any]:
        return _json(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Path:
        return Path(_whole(data["n"]), _wholes(data["layers"]), _wholes(data["positions"]), _flag(data["residual"]))


@dataclass(frozen=True)
class ClosedSet:
    """Positions that no step leaves in any layer. The set holds ``q`` and not ``k``, so q never reads k."""

    n: int
    runs: Runs
    q: int
    k: int

    def to_json(self) -> dict[str, Any]:
        return _json(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ClosedSet:
        return ClosedSet(_whole(data["n"]), _runs(data["runs"]), _whole(data["q"]), _whole(data["k"]))


@dataclass(frozen=True)
class Chain:
    """A lower bound: ``sets[i]`` holds all that ``start`` can read through i layers, and the last one lacks ``k``.

    ``sets[0]`` holds ``start``, and no step in layer ``layers[i]`` leads from ``sets[i]`` out of ``sets[i + 1]``; the layers
    are consecutive and descend. So ``len(layers)`` layers, ending at the lowest of them, are not enough. With ``n`` None
    the claim is for every n that has these positions.
    """

    n: int | None
    start: int
    sets: tuple[Runs, ...]
    layers: tuple[int, ...]
    k: int
    residual: bool = True

    def to_json(self) -> dict[str, Any]:
        return _json(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Chain:
        sets = tuple(_runs(runs) for runs in data["sets"])
        start, k = _whole(data["start"]), _whole(data["k"])
        return Chain(_length(data["n"]), start, sets, _wholes(data["layers"]), k, _flag(data["residual"]))


@dataclass(frozen=True)
class Claim:
    """Pairs that ``layers`` consecutive layers from ``first`` up (modulo the period) connect.

    ``condition`` is the text of a condition of the language's ``where(...)``. A claim without ``parts`` is about the step of
    one layer, or of no layer, that is q = k. One with ``parts`` (lower, upper), numbers of earlier claims, is about their
    composition: q reaches some x by the upper part and x reaches k by the lower part.
    """

    condition: str
    first: int
    layers: int
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Missing:
    """A pair that claim number ``claim`` does not hold."""

    claim: int
    n: int
    q: int
    k: int


@dataclass(frozen=True)
class Powers:
    """Bounds on how many layers a target takes, as exact relations, each resting on earlier ones.

    With a ``target``, the text of a condition, an upper bound: every claim is *contained* in the step or composition that it
    is about, and the last one contains the target. With a ``missing`` pair a lower bound: every claim *contains* what it is
    about, and one of them lacks the pair. With ``n`` None all is claimed for every n at once.
    """

    n: int | None
    claims: tuple[Claim, ...]
    target: str | None
    missing: Missing | None = None
    residual: bool = True

    @property
    def layers(self) -> int:
        """How many layers the last claim takes."""
        return self.claims[-1].layers

    def to_json(self) -> dict[str, Any]:
        return _json(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Powers:
        claims = tuple(
            Claim(_text(c["condition"]), _whole(c["first"]), _whole(c["layers"]), _wholes(c["parts"])) for c in data["claims"]
        )
        pair = data["missing"]
        missing = None if pair is None else Missing(*(_whole(pair[name]) for name in ("claim", "n", "q", "k")))
        target = None if data["target"] is None else _text(data["target"])
        return Powers(_length(data["n"]), claims, target, missing, _flag(data["residual"]))


@dataclass(frozen=True)
class Star:
    """Positions that every other reads and that read every other, in every layer, whatever inputs, draws and scores do.

    ``center`` is the text of a condition on ``q`` that holds of them. There is one at ``n``, or with None at every n.
    """

    n: int | None
    center: str

    def to_json(self) -> dict[str, Any]:
        return _json(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Star:
        return Star(_length(data["n"]), _text(data["center"]))


@dataclass(frozen=True)
class Joint:
    """Several certificates that are all needed: a lower and an upper bound."""

    parts: tuple[Certificate, ...]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "Joint", "parts": [part.to_json() for part in self.parts]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Joint:
        return Joint(tuple(certificate_from_json(part) for part in data["parts"]))


Certificate: TypeAlias = Path | ClosedSet | Chain | Powers | Star | Joint


def certificate_from_json(data: Mapping[str, Any]) -> Certificate:
    """The certificate that `to_json` wrote.

    Raises:
        ValueError: no kind of certificate has this name, or it has other fields.
    """
    kinds: tuple[type[Certificate], ...] = (Path, ClosedSet, Chain, Powers, Star, Joint)
    name = data.get("kind") if isinstance(data, Mapping) else None
    for kind in kinds:
        if name == kind.__name__:
            try:
                return kind.from_json(data)
            except (KeyError, TypeError) as error:
                raise ValueError(f"a certificate of kind {name!r} has other fields: {error}") from None
    raise ValueError(f"there is no certificate of kind {name!r}")


def _json(certificate: Path | ClosedSet | Chain | Powers | Star) -> dict[str, Any]:
    return {"kind": type(certificate).__name__, **asdict(certificate)}


def _runs(data: Any) -> Runs:
    return tuple((_whole(first), _whole(last), _whole(step)) for first, last, step in data)


def _wholes(data: Any) -> tuple[int, ...]:
    return tuple(map(_whole, data))


def _length(value: Any) -> int | None:
    return None if value is None else _whole(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
