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
        return Path(data["n"], tuple(data["layers"]), tuple(data["positions"]), data["residual"])


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
        return ClosedSet(data["n"], _runs(data["runs"]), data["q"], data["k"])


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
        return Chain(data["n"], data["start"], sets, tuple(data["layers"]), data["k"], data["residual"])


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
        claims = tuple(Claim(c["condition"], c["first"], c["layers"], tuple(c["parts"])) for c in data["claims"])
        missing = None if data["missing"] is None else Missing(**data["missing"])
        return Powers(data["n"], claims, data["target"], missing, data["residual"])


@dataclass(frozen=True)
class Joint:
    """Several certificates that are all needed: a lower and an upper bound."""

    parts: tuple[Certificate, ...]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "Joint", "parts": [part.to_json() for part in self.parts]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Joint:
        return Joint(tuple(certificate_from_json(part) for part in data["parts"]))


Certificate: TypeAlias = Path | ClosedSet | Chain | Powers | Joint


def certificate_from_json(data: Mapping[str, Any]) -> Certificate:
    """The certificate that `to_json` wrote.

    Raises:
        ValueError: no kind of certificate has this name.
    """
    kinds: tuple[type[Certificate], ...] = (Path, ClosedSet, Chain, Powers, Joint)
    for kind in kinds:
        if data.get("kind") == kind.__name__:
            return kind.from_json(data)
    raise ValueError(f"there is no certificate of kind {data.get('kind')!r}")


def _json(certificate: Path | ClosedSet | Chain | Powers) -> dict[str, Any]:
    return {"kind": type(certificate).__name__, **asdict(certificate)}


def _runs(data: Any) -> Runs:
    return tuple((first, last, step) for first, last, step in data)
