"""What a backend is, and how backends are found: by file name (`emit_*.py`) and by entry point (`patternc.backends`)."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from patternc.diagnostics import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from patternc.lower.cost import TileCost
    from patternc.lower.plan import Plan, Tile


@dataclass(frozen=True)
class Request:
    """The call that a backend is asked to serve.

    ``dtype`` is torch's name, such as "bfloat16"; ``device`` the device's type; ``generation`` the major compute
    capability of an NVIDIA GPU, and 0 for everything else.
    """

    device: str
    dtype: str
    head_dim: int
    value_dim: int
    length: int
    generation: int = 9


class Backend(Protocol):
    """Turns plans into source files. ``emit`` may be called on a machine that cannot run the result.

    The emitted file needs nothing of patternc. It defines ``attention(q, k, v, *, scale, return_lse, **inputs)`` for
    people, and ``selections(q, k, inputs)`` and ``forward(q, k, v, inputs, chosen, scale)`` for the runtime; a backend
    whose ``differentiable`` is true also defines ``backward``.
    """

    name: str
    rank: int
    """Preference where several backends can serve a request: the highest wins."""
    differentiable: bool
    views: bool
    """Whether it can walk static pieces in other views than rows and keys as they are."""
    splits: bool
    """Whether it can split the work on some long rows among programs, and walk lists of selections in passes of their own."""

    def unsupported(self, request: Request) -> list[str]:
        """Why this backend cannot serve a request; empty if it can."""
        ...

    def refused(self, plan: Plan, request: Request) -> list[str]:
        """Why this backend cannot run a plan of its own for a request that it can serve; empty if it can."""
        ...

    def tiles(self, request: Request) -> tuple[TileCost, ...]:
        """The tile shapes to choose from for a request, with what they cost."""
        ...

    def query_tile(self, request: Request) -> Tile | None:
        """Queries (rows) and keys of a tile of the gradient of queries, where it needs walks of its own."""
        ...

    def key_tile(self, request: Request) -> Tile | None:
        """Keys (rows) and queries of a tile of the gradients of keys and values, where these need walks of their own."""
        ...

    def joint_tile(self, request: Request) -> Tile | None:
        """Keys (rows) and queries of a tile where one pass can compute all gradients."""
        ...

    def emit(self, plan: Plan) -> str:
        """The source of a standalone Python file."""
        ...


@lru_cache(maxsize=1)
def backends() -> Mapping[str, Backend]:
    """All backends by name: the package's own and those of installed plug-ins."""
    package = import_module("patternc.backends")
    modules = [m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith("emit_")]
    found: list[Backend] = [import_module(f"patternc.backends.{name}").BACKEND for name in modules]
    found += [entry.load() for entry in entry_points(group="patternc.backends")]
    return MappingProxyType({backend.name: backend for backend in found})


def backend_named(name: str) -> Backend:
    """A backend by name.

    Raises:
        ValueError: there is none of that name.
    """
    known = backends()
    if name not in known:
        hint = suggest(name, known)
        raise ValueError(f"unknown backend '{name}'; {hint or 'there are ' + ', '.join(sorted(known))}")
    return known[name]


def ranked() -> list[Backend]:
    """All backends, the preferred one first."""
    return sorted(backends().values(), key=lambda backend: -backend.rank)


def choose(request: Request, name: str = "", refused: Callable[[Backend], list[str]] = lambda _: []) -> Backend:
    """The backend of that name, or without a name the preferred one, for a request; ``refused`` may add reasons against it.

    Raises:
        ValueError: it (or none) can serve the request; the message lists the reasons.
    """
    reasons = {}
    for backend in [backend_named(name)] if name else ranked():
        reasons[backend.name] = backend.unsupported(request) or refused(backend)
        if not reasons[backend.name]:
            return backend
    if name:
        raise ValueError(f"the {name} backend cannot run this call: {', '.join(reasons[name])}")
    listed = "; ".join(f"{other}: {', '.join(why)}" for other, why in reasons.items())
    raise ValueError(f"no backend can run this call ({listed})")
