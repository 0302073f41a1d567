"""Relations between query and key positions: Presburger sets {(q, k)} with the length n as a parameter.

This is the only module that knows the integer set library (islpy). Every call runs under an operation budget and raises
`BudgetExceeded` instead of running away. What leaves this module is `Relation`, `Loop` and `Scalar` trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, reduce
from math import gcd, lcm
from typing import Any, TypeVar

import islpy as isl

from patternc.scalar import (
    TRUE,
    ZERO,
    Const,
    Op,
    Operator,
    Scalar,
    Var,
    bounds,
    conjunction,
    disjunction,
    evaluate,
    op,
    substitute,
    text,
)

DEFAULT_BUDGET = 2_000_000
TILE_BUDGET = 1_000_000
ELABORATION_BUDGET = 800_000
ROW_BUDGET = 50_000
MAX_RESIDUES = 4_096
MAX_ORDERED = 16
MAX_FEW = 4_096

T = TypeVar("T")


class BudgetExceeded(Exception):
    """An exact set operation took more steps than its budget allows."""


@contextmanager
def budget(operations: int = DEFAULT_BUDGET) -> Iterator[None]:
    """Bound the work of the enclosed calls; nested budgets share the outermost one's allowance."""
    context = isl.DEFAULT_CONTEXT
    outermost = context.get_max_operations() == 0
    if outermost:
        context.reset_operations()
        context.set_max_operations(operations)
    try:
        yield
    except isl.Error:
        if _spent():
            raise BudgetExceeded("the exact set computation is over its operation budget") from None
        raise
    finally:
        if outermost:
            context.set_max_operations(0)


def _spent() -> bool:
    """Whether the allowance is used up: then even the smallest call fails (its message may not say why)."""
    try:
        isl.Set("{ [0] }").is_empty()
    except isl.Error:
        return True
    return False


def _budgeted(function: Callable[..., T]) -> Callable[..., T]:
    def wrapper(*args: Any, **kwargs: Any) -> T:
        with budget():
            return function(*args, **kwargs)

    wrapper.__doc__, wrapper.__name__ = function.__doc__, function.__name__
    return wrapper


@dataclass(frozen=True)
class Loop:
    """The values ``start + step * t`` for ``0 <= t < count``, where ``guard`` (over the value, named ``x``) holds.

    ``start`` and ``count`` are closed forms in the loop's parameters; ``count`` may be zero or negative (no values).
    """

    start: Scalar
    count: Scalar
    step: int
    guard: Scalar = TRUE
    interleaved: bool = False
    """Whether values of the neighbouring loops may stand between its own; otherwise loops follow each other, ascending."""


@dataclass(frozen=True)
class View:
    """A re-indexing of queries and keys under which spread-out pairs lie close together.

    With a stride s, row t of residue r is query s*t + r, and key u is s*u + (r - offset) mod s: pairs whose distance q - k
    leaves the remainder ``offset`` meet. With a period P, key u is P*(u // width) + first + u % width: ``width`` keys out of
    every P; if ``packs_rows``, row t is that query instead. Otherwise rows and keys are as they are. ``few`` says that the
    number of rows does not grow with n.
    """

    stride: int = 1
    offset: int = 0
    period: int = 1
    width: int = 1
    first: int = 0
    packs_rows: bool = False
    few: bool = False

    @property
    def key(self) -> Scalar:
        """The position of key ``u``, in residue ``r``."""
        u = Var("u")
        if self.stride > 1:
            residue = op("%", op("-", Var("r"), self.offset), self.stride) if self.offset else Var("r")
            return op("+", op("*", self.stride, u), residue)
        return u if self.packs_rows else self._packed(u)

    @property
    def query(self) -> Scalar:
        """The position of row ``t``, in residue ``r``."""
        t = Var("t")
        if self.stride > 1:
            return op("+", op("*", self.stride, t), Var("r"))
        return self._packed(t) if self.packs_rows else t

    def _packed(self, index: Scalar) -> Scalar:
        if self.period == 1:
            return index
        start = op("+", op("*", self.period, op("//", index, self.width)), self.first)
        return op("+", start, op("%", index, self.width))

    @property
    def rows(self) -> View:
        """What the view says of rows: pieces that agree on it can share one pass over them."""
        if self.stride > 1:
            return View(self.stride)
        return self if self.packs_rows or self.few else IDENTITY

    def row_count(self, n: int) -> int:
        """Rows of one residue."""
        if self.packs_rows:
            return -(-n // self.period) * self.width
        return -(-n // self.stride)

    def __str__(self) -> str:
        if self.stride > 1 or self.packs_rows:
            return f"q = {text(self.query)}, k = {text(self.key)}"
        return "few rows" if self.few else f"k = {text(self.key)}"


IDENTITY = View()


@dataclass(frozen=True)
class Pair:
    """A query and a key position in a sequence of n: a witness."""

    n: int
    q: int
    k: int

    def __str__(self) -> str:
        return f"query {self.q} and key {self.k} at n = {self.n}"


_SPACE = "[n] -> { [q] -> [k] : 0 <= q < n and 0 <= k < n"


@dataclass(frozen=True, eq=False)
class Relation:
    """The pairs (q, k), 0 <= q, k < n, that satisfy a Presburger condition, for every n >= 1 at once."""

    _map: isl.Map

    @staticmethod
    @lru_cache(maxsize=4_096)
    @_budgeted
    def where(condition: Scalar) -> Relation:
        """The relation of a condition over ``q``, ``k`` and ``n``."""
        return Relation(isl.Map(f"{_SPACE} and ({_isl_text(condition)}) }}").coalesce())

    @_budgeted
    def __and__(self, other: Relation) -> Relation:
        return Relation((self._map & other._map).coalesce())

    @_budgeted
    def __or__(self, other: Relation) -> Relation:
        return Relation((self._map | other._map).coalesce())

    @_budgeted
    def __sub__(self, other: Relation) -> Relation:
        return Relation((self._map - other._map).coalesce())

    def __invert__(self) -> Relation:
        return everything() - self

    @_budgeted
    def inverse(self) -> Relation:
        """The pairs (k, q) for every pair (q, k)."""
        turned = self._map.reverse()  # with its names still the wrong way round
        return Relation(turned.set_dim_name(isl.dim_type.in_, 0, "q").set_dim_name(isl.dim_type.out, 0, "k"))

    @_budgeted
    def is_empty(self) -> bool:
        return bool(self._map.is_empty())

    @_budgeted
    def is_subset(self, other: Relation) -> bool:
        return bool(self._map.is_subset(other._map))

    @_budgeted
    def equals(self, other: Relation) -> bool:
        return bool(self._map.is_equal(other._map))

    @_budgeted
    def then(self, other: Relation) -> Relation:
        """The pairs (q, k) for which some x has (q, x) in this relation and (x, k) in ``other``."""
        return Relation(self._map.apply_range(other._map).coalesce())

    @_budgeted
    def at(self, n: int) -> Relation:
        """The pairs at one n; the relation is empty at every other."""
        return Relation(self._map.fix_val(isl.dim_type.param, 0, isl.Val(n)).coalesce())

    @_budgeted
    def image(self, queries: Positions) -> Positions:
        """The keys of any of the queries."""
        return Positions(queries._set.apply(self._map).coalesce())

    @_budgeted
    def preimage(self, keys: Positions) -> Positions:
        """The queries that read any of the keys."""
        return Positions(keys._set.apply(self._map.reverse()).coalesce())

    @_budgeted
    def lengths_without(self, q: int, k: int) -> int | None:
        """The smallest n that has positions q and k but not the pair; None if every such n has the pair."""
        wanted = isl.Map(f"[n] -> {{ [{q}] -> [{k}] : n > {max(q, k)} }}")
        missing = (wanted - self._map).params()
        if missing.is_empty():
            return None
        ns = missing.move_dims(isl.dim_type.set, 0, isl.dim_type.param, 0, 1)
        return int(ns.dim_min_val(0).to_python())

    @cached_property
    def condition(self) -> Scalar:
        """The condition on ``q``, ``k``, ``n`` that `where` reads back: linear, with divisions by constants only."""
        with budget():
            pieces = self._map.compute_divs().wrap().flatten().get_basic_sets()
            return disjunction(_constraints(piece) for piece in pieces)

    @_budgeted
    def views(self) -> list[tuple[View, Relation]]:
        """The relation in pieces, each with the view that packs it best; pieces may overlap."""
        found: dict[View, isl.Map] = {}
        for basic in self._map.coalesce().compute_divs().get_basic_maps():
            piece = isl.Map.from_basic_map(basic)
            view = _view_of(piece)
            found[view] = found[view] | piece if view in found else piece
        return [(view, Relation(pairs.coalesce())) for view, pairs in found.items()]

    @_budgeted
    def queries(self) -> Relation:
        """Every (q, k) whose query q has at least one key."""
        domain = self._map.domain()
        return Relation(everything()._map.intersect_domain(domain))

    @_budgeted
    def sample(self) -> Pair | None:
        """A pair of the relation, at the smallest n that has one and with the smallest q and k there; None if empty."""
        if self._map.is_empty():
            return None
        moved = self._map.move_dims(isl.dim_type.out, 0, isl.dim_type.param, 0, 1)
        points = moved.move_dims(isl.dim_type.in_, 0, isl.dim_type.out, 0, 1).wrap().flatten()
        point = points.lexmin().sample_point()
        n, q, k = (point.get_coordinate_val(isl.dim_type.set, i).to_python() for i in range(3))
        return Pair(n, q, k)

    def contains(self, q: int, k: int, n: int) -> bool:
        return 0 <= q < n and 0 <= k < n and bool(evaluate(self.predicate, {"q": q, "k": k, "n": n}))

    @cached_property
    def predicate(self) -> Scalar:
        """The condition on ``q``, ``k``, ``n`` in closed form, given 0 <= q, k < n."""
        with budget():
            condition = _as_parameters(self._map).coalesce()
            build = isl.AstBuild.from_context(isl.Set("[n, q, k] -> { : 0 <= q < n and 0 <= k < n }"))
            return _fitting(_condition(build.expr_from_set(condition)), "qkn")

    @cached_property
    def rows(self) -> tuple[Loop, ...]:
        """The keys of query ``q``: disjoint loops in ``q`` and ``n``, without guards. Raises `BudgetExceeded`."""
        return self.block_rows(1)

    @lru_cache(maxsize=1_024)  # noqa: B019 - bounded, and relations are small
    @_budgeted
    def block_rows(self, block: int) -> tuple[Loop, ...]:
        """The key blocks that hold a pair with some query of query block ``q``: disjoint loops without guards.

        The loops ascend one after the other, except for those marked ``interleaved``.

        Raises:
            BudgetExceeded: there is no such list of at most `MAX_RESIDUES` loops within the budget.
        """
        blocks = _tile_rows(block).reverse().apply_range(self._map).apply_range(_tile_columns(block))
        blocked = Relation(blocks.compute_divs().coalesce())
        context = isl.Set(f"[n, q] -> {{ : 0 <= q and {block} * q < n }}")
        pieces = blocked._pieces
        loops = tuple(_loops(_range_over(blocked._map, "q"), context)) if len(pieces) <= MAX_ORDERED else ()
        if len(pieces) > MAX_ORDERED or any(loop.guard != TRUE for loop in loops):
            split = [loop for piece in pieces for loop in _row_loops(piece, context)]
            loops = tuple(replace(loop, interleaved=len(split) > 1) for loop in split)
        for loop in loops:
            _fitting(op("+", loop.start, op("*", loop.step, loop.count)), "qn")
        return loops

    @property
    def _pieces(self) -> list[isl.Map]:
        disjoint = self._map.coalesce().compute_divs().make_disjoint().compute_divs()
        return [isl.Map.from_basic_map(piece) for piece in disjoint.get_basic_maps()]

    @_budgeted
    def row(self, q: int, n: int) -> list[tuple[int, int, int]]:
        """The keys of one query as disjoint runs (first, last, step), ascending by first."""
        fixed = self._map.fix_val(isl.dim_type.param, 0, isl.Val(n)).fix_val(isl.dim_type.in_, 0, isl.Val(q))
        runs: list[tuple[int, int, int]] = []
        for piece in Relation(fixed)._pieces:
            for loop in _row_loops(piece, isl.Set(f"[n, q] -> {{ : n = {n} and q = {q} }}")):
                start, count = (int(evaluate(e, {"q": q, "n": n})) for e in (loop.start, loop.count))
                if count > 0:
                    runs.append((start, start + (count - 1) * loop.step, loop.step))
        return sorted(runs)

    @lru_cache(maxsize=512)  # noqa: B019 - bounded
    def tiles(self, rows: int, columns: int, view: View = IDENTITY) -> TileSets:
        """Which tiles of ``rows`` queries by ``columns`` keys hold some pair, and which hold every pair.

        Tile (I, J) covers queries I*rows to I*rows + rows - 1 that exist (q < n) and keys J*columns to
        J*columns + columns - 1; a tile is full only if all of those keys exist and are read by all of those queries.
        With a view, both count positions in the view (and the loops speak of the residue ``r``); keys that the view does
        not reach are left out. Where the exact sets are over their budget, no tile is called full and some empty ones are
        called partial.
        """
        try:
            with budget(TILE_BUDGET):
                return self._tiles(rows, columns, view, self._map, exact=True)
        except BudgetExceeded:
            hull = self._map.remove_divs().coalesce()
            return self._tiles(rows, columns, view, hull, exact=False)

    @_budgeted
    def _tiles(self, rows: int, columns: int, view: View, cover: isl.Map, *, exact: bool) -> TileSets:
        row_tile, column_tile = _tile_rows(rows, view), _tile_columns(columns, view)
        active = row_tile.reverse().apply_range(cover).apply_range(column_tile).coalesce()
        if not exact:
            return TileSets(rows, columns, view, exact, active - active, active)
        broken = row_tile.reverse().apply_range(_halo() - self._map).apply_range(column_tile)
        full = (active - broken).coalesce()
        tiles = TileSets(rows, columns, view, exact, full, (active - full).coalesce())
        if tiles.guards and not view.few:
            # The last row tile, which n may cut short, is full where it needs fewer keys: conditions of little use.
            whole = full.intersect_domain(_whole_rows(rows, view)).coalesce()
            simpler = TileSets(rows, columns, view, exact, whole, (active - whole).coalesce())
            return min(tiles, simpler, key=lambda t: t.guards)
        return tiles

    def active_tiles(self, rows: int, columns: int) -> Scalar:
        """Whether tile (``I``, ``J``) may hold a pair, as a condition on ``I``, ``J``, ``n``; true if that is too complex."""
        return self._tile_condition(rows, columns, whole=False)

    def full_tiles(self, rows: int, columns: int) -> Scalar:
        """Whether tile (``I``, ``J``) surely holds every pair of queries that exist and all its keys; false if too complex."""
        return self._tile_condition(rows, columns, whole=True)

    def _tile_condition(self, rows: int, columns: int, *, whole: bool) -> Scalar:
        try:
            with budget(TILE_BUDGET):
                row_tile, column_tile = _tile_rows(rows), _tile_columns(columns)
                tiles = row_tile.reverse().apply_range(self._map).apply_range(column_tile)
                if whole:
                    tiles = tiles - row_tile.reverse().apply_range(_halo() - self._map).apply_range(column_tile)
                condition = _as_parameters(tiles, "I", "J").coalesce()
                build = isl.AstBuild.from_context(
                    isl.Set(f"[n, I, J] -> {{ : I, J >= 0 and {rows} * I < n and {columns} * J < n }}")
                )
                return _condition(build.expr_from_set(condition))
        except BudgetExceeded:
            return Const(not whole)

    def __str__(self) -> str:
        return str(self._map)


@dataclass(frozen=True, eq=False)
class Positions:
    """A set of positions x, 0 <= x < n, for every n at once."""

    _set: isl.Set

    @staticmethod
    @_budgeted
    def of(runs: Iterable[tuple[int, int, int]]) -> Positions:
        """The positions first, first + step, ..., last of every run, where they exist."""
        parts = (f"[n] -> {{ [x] : {a} <= x <= {b} and (x - {a}) mod {step} = 0 and 0 <= x < n }}" for a, b, step in runs)
        return Positions(reduce(isl.Set.union, map(isl.Set, parts), isl.Set("[n] -> { [x] : false }")).coalesce())

    @_budgeted
    def __and__(self, other: Positions) -> Positions:
        return Positions((self._set & other._set).coalesce())

    @_budgeted
    def __or__(self, other: Positions) -> Positions:
        return Positions((self._set | other._set).coalesce())

    @_budgeted
    def __sub__(self, other: Positions) -> Positions:
        return Positions((self._set - other._set).coalesce())

    @_budgeted
    def is_empty(self) -> bool:
        return bool(self._set.is_empty())

    @_budgeted
    def is_subset(self, other: Positions) -> bool:
        return bool(self._set.is_subset(other._set))

    @_budgeted
    def smallest(self, n: int) -> int | None:
        """The first of the positions at n; None if there is none."""
        fixed = self._set.fix_val(isl.dim_type.param, 0, isl.Val(n))
        return None if fixed.is_empty() else int(fixed.dim_min_val(0).to_python())

    @_budgeted
    def runs(self, n: int) -> tuple[tuple[int, int, int], ...]:
        """The positions at n as disjoint runs (first, last, step), ascending by first."""
        fixed = self._set.fix_val(isl.dim_type.param, 0, isl.Val(n)).coalesce().compute_divs()
        plain = fixed.get_basic_sets()
        if len(plain) > 1:
            plain = fixed.make_disjoint().compute_divs().get_basic_sets()
        found: list[tuple[int, int, int]] = []
        for piece in plain:
            one = isl.Set.from_basic_set(piece)
            if piece.dim(isl.dim_type.div) == 0:
                first, last = (int(bound.to_python()) for bound in (one.dim_min_val(0), one.dim_max_val(0)))
                found.append((first, last, 1))
            else:
                zero = isl.Set("[n] -> { [0] }")
                found += Relation(isl.Map.from_domain_and_range(zero, one)).row(0, n)
        return tuple(sorted(found))


@dataclass(frozen=True, eq=False)
class TileSets:
    """The full and the partial tiles of a relation, as relations from row tile I to key tile J."""

    rows: int
    columns: int
    view: View
    exact: bool
    _full: isl.Map
    _partial: isl.Map

    @cached_property
    def full(self) -> tuple[Loop, ...]:
        """The key tiles J of row tile ``I`` in which every pair holds: no mask is needed there."""
        return self._loops(self._full)

    @cached_property
    def partial(self) -> tuple[Loop, ...]:
        """The key tiles J of row tile ``I`` in which some but not every pair holds."""
        return self._loops(self._partial)

    @property
    def guards(self) -> int:
        """Loops that test each tile they come to."""
        return sum(loop.guard != TRUE for loop in self.full + self.partial)

    @cached_property
    def visits(self) -> tuple[Loop, ...]:
        """The row tiles that hold some pair, in ``n`` alone."""
        with budget():
            rows = (self._full | self._partial).domain().coalesce()
            return tuple(_loops(rows, isl.Set("[n] -> { : n >= 1 }")))

    @_budgeted
    def _loops(self, tiles: isl.Map) -> tuple[Loop, ...]:
        stride = self.view.stride
        inside = f"r >= 0 and r < {stride} and {self.rows * stride} * I + r < n" if stride > 1 else f"{self.rows} * I < n"
        if self.view.packs_rows:
            inside = f"{self.view.period} * floor({self.rows} * I / {self.view.width}) < n"
        context = isl.Set(f"[n{', r' if stride > 1 else ''}, I] -> {{ : I >= 0 and {inside} }}")
        return tuple(_loops(_range_over(tiles, "I"), context))


@lru_cache(maxsize=1)
def everything() -> Relation:
    """All pairs."""
    return Relation(isl.Map(_SPACE + " }"))


@lru_cache(maxsize=1)
def nothing() -> Relation:
    """No pairs."""
    return Relation(isl.Map(_SPACE + " and false }"))


def _halo() -> isl.Map:
    """Every query that exists with every key, also those past the end."""
    return isl.Map("[n] -> { [q] -> [k] : 0 <= q < n and k >= 0 }")


def _fitting(expr: Scalar, names: str) -> Scalar:
    """``expr``, if it can be computed in 64 bits for all positions below 2^31."""
    if max(map(abs, bounds(expr, dict.fromkeys(names, (0, 2**31 - 1))))) >= 1 << 63:
        raise BudgetExceeded("its numbers are over 64 bits")
    return expr


def _tile_rows(size: int, view: View = IDENTITY) -> isl.Map:
    if view.stride > 1:
        row = f"q = {view.stride} * t + r and 0 <= r < {view.stride}"
        return isl.Map(f"[n, r] -> {{ [q] -> [I] : exists t : {row} and I = floor(t/{size}) and 0 <= q < n }}")
    if view.packs_rows:
        row = f"q = {_isl_text(view.query)} and t >= 0"
        return isl.Map(f"[n] -> {{ [q] -> [I] : exists t : {row} and I = floor(t/{size}) and 0 <= q < n }}")
    return isl.Map(f"[n] -> {{ [q] -> [I] : I = floor(q/{size}) and 0 <= q < n }}")


def _whole_rows(size: int, view: View) -> isl.Set:
    """The row tiles whose rows all exist."""
    last = f"{size} * I + {size - 1}"
    if view.stride > 1:
        return isl.Set(f"[n, r] -> {{ [I] : {view.stride} * ({last}) + r < n }}")
    position = _isl_text(substitute(view.query, {"t": Var("t")}))
    return isl.Set(f"[n] -> {{ [I] : exists t : t = {last} and {position} < n }}")


def _tile_columns(size: int, view: View = IDENTITY) -> isl.Map:
    if view.key != Var("u"):
        key = f"k = {_isl_text(view.key)}"
        parameters = "[n, r]" if view.stride > 1 else "[n]"
        return isl.Map(f"{parameters} -> {{ [k] -> [J] : exists u : {key} and u >= 0 and J = floor(u/{size}) }}")
    return isl.Map(f"[n] -> {{ [k] -> [J] : J = floor(k/{size}) and k >= 0 }}")


def _isl_text(node: Scalar) -> str:
    match node:
        case Const(bool(value)):
            return "true" if value else "false"
        case Const(value):
            return str(value)
        case Var(name):
            return name
        case Op("//", (a, Const(divisor))):
            return f"floor(({_isl_text(a)})/{divisor})"
        case Op("%", (a, Const(divisor))):
            return f"(({_isl_text(a)}) mod {divisor})"
        case Op("*", (a, b)):
            constant, factor = (a, b) if isinstance(a, Const) else (b, a)
            return f"({_isl_text(constant)} * ({_isl_text(factor)}))"
        case Op("not", (a,)):
            return f"not ({_isl_text(a)})"
        case Op("==", (a, b)):
            return f"({_isl_text(a)} = {_isl_text(b)})"
        case Op(name, args):
            return "(" + f" {name} ".join(map(_isl_text, args)) + ")"


def _constraints(piece: isl.BasicSet) -> Scalar:
    """The constraints of a piece over points (q, k), its divisions written out."""
    kinds: Any = isl.dim_type
    names: list[tuple[Any, int, Scalar]] = [(kinds.param, 0, Var("n")), (kinds.set, 0, Var("q")), (kinds.set, 1, Var("k"))]
    for i in range(piece.dim(kinds.div)):
        div = piece.get_div(i)
        scale = div.get_denominator_val()
        inputs = [(kinds.in_ if kind == kinds.set else kind, at, name) for kind, at, name in names]
        terms = [(div.get_coefficient_val(kind, at).mul(scale).to_python(), name) for kind, at, name in inputs]
        whole = _linear(terms, div.get_constant_val().mul(scale))
        names.append((kinds.div, i, op("//", whole, scale.to_python())))
    found: list[Scalar] = []
    for constraint in piece.get_constraints():
        terms = [(constraint.get_coefficient_val(kind, at).to_python(), name) for kind, at, name in names]
        left = _linear(terms, constraint.get_constant_val())
        found.append(op("==" if constraint.is_equality() else "<=", 0, left))
    return conjunction(found)


def _linear(terms: Iterable[tuple[int, Scalar]], constant: isl.Val) -> Scalar:
    """The sum of the terms, those that are added first."""
    total: Scalar = ZERO
    for factor, name in sorted(terms, key=lambda term: -term[0]):
        if factor > 0:
            total = name if total == ZERO and factor == 1 else op("+", total, op("*", factor, name))
        elif factor < 0:
            total = op("-", total, op("*", -factor, name))
    value = constant.to_python()
    return op("+", total, value) if value else total


def _as_parameters(relation: isl.Map, domain: str = "q", range_: str = "k") -> isl.Set:
    """The set of parameters (n, domain, range) for which the pair is in the relation."""
    moved = relation.move_dims(isl.dim_type.param, 1, isl.dim_type.in_, 0, 1)
    moved = moved.move_dims(isl.dim_type.param, 2, isl.dim_type.out, 0, 1)
    named = moved.params().set_dim_name(isl.dim_type.param, 1, domain).set_dim_name(isl.dim_type.param, 2, range_)
    return named.compute_divs()


def _range_over(relation: isl.Map, domain: str) -> isl.Set:
    """The range, with the domain turned into a parameter."""
    moved = relation.move_dims(isl.dim_type.param, 1, isl.dim_type.in_, 0, 1)
    return moved.set_dim_name(isl.dim_type.param, 1, domain).range()


def _loops(values: isl.Set, context: isl.Set) -> Iterator[Loop]:
    """The one-dimensional set as loops, in the order and form of the library's code generator."""
    values = values.compute_divs().coalesce().set_tuple_name("visit")  # the generator refuses divisions it cannot name
    values = values.align_params(context.get_space())  # and confuses parameters that come in another order
    if values.is_empty():
        return
    options = isl.UnionMap("[n] -> { [i] -> separate[x] }")
    build = isl.AstBuild.from_context(context).set_options(options)
    schedule = isl.Map.identity(values.get_space().map_from_set()).intersect_domain(values)
    loops = list(_walk(build.node_from_schedule_map(isl.UnionMap.from_map(schedule)), TRUE))
    interval = _interval(values, context) if any(loop.guard != TRUE for loop in loops) else None
    yield from loops if interval is None else [interval]


def _interval(values: isl.Set, context: isl.Set) -> Loop | None:
    """The set as one loop over all integers between its bounds, if that is what it is."""
    values = values.reset_tuple_id().intersect_params(context)
    above = isl.Map("{ [a] -> [b] : a <= b }")
    if not (values.apply(above) & values.apply(above.reverse())).is_equal(values):
        return None
    build = isl.AstBuild.from_context(context)
    start, last = (_scalar(build.expr_from_pw_aff(bound)) for bound in (values.dim_min(0), values.dim_max(0)))
    some = _condition(build.expr_from_set(values.params()))
    return Loop(start, op("where", some, op("+", op("-", last, start), 1), 0), 1)


def _walk(node: isl.AstNode, condition: Scalar) -> Iterator[Loop]:
    kind: Any = isl.ast_node_type
    match node.get_type():
        case kind.block:
            children = node.block_get_children()
            for i in range(children.n_ast_node()):
                yield from _walk(children.get_at(i), condition)
        case kind.if_:
            test = _condition(node.if_get_cond())
            yield from _walk(node.if_get_then_node(), conjunction((condition, test)))
            if node.if_has_else_node():
                yield from _walk(node.if_get_else_node(), conjunction((condition, op("not", test))))
        case kind.user:
            value = _scalar(node.user_get_expr().get_op_arg(1))
            yield Loop(value, op("where", condition, 1, 0), 1)
        case kind.for_:
            yield from _for(node, condition)
        case other:
            raise AssertionError(f"unexpected loop node {other}")


def _for(node: isl.AstNode, condition: Scalar) -> Iterator[Loop]:
    iterator = node.for_get_iterator().get_id().get_name()
    start = _scalar(node.for_get_init())
    if node.for_is_degenerate():
        for loop in _walk(node.for_get_body(), condition):
            yield Loop(substitute(loop.start, {iterator: start}), substitute(loop.count, {iterator: start}), 1)
        return
    step = node.for_get_inc().get_val().to_python()
    match _scalar(node.for_get_cond()):
        case Op("<=", (Var(name), last)) if name == iterator:
            last_plus = op("+", op("-", last, start), step)
        case Op("<", (Var(name), end)) if name == iterator:
            last_plus = op("+", op("-", end, start), step - 1)
        case other:
            raise AssertionError(f"unexpected loop bound {other}")
    count = op("where", condition, op("//", last_plus, step), 0)
    yield from _for_body(node.for_get_body(), iterator, start, count, step, TRUE)


def _for_body(node: isl.AstNode, iterator: str, start: Scalar, count: Scalar, step: int, guard: Scalar) -> Iterator[Loop]:
    kind: Any = isl.ast_node_type
    match node.get_type():
        case kind.user:
            if _scalar(node.user_get_expr().get_op_arg(1)) != Var(iterator):
                raise AssertionError("a loop visits something other than its iterator")
            yield Loop(start, count, step, substitute(guard, {iterator: Var("x")}))
        case kind.if_ if not node.if_has_else_node():
            test = _condition(node.if_get_cond())
            yield from _for_body(node.if_get_then_node(), iterator, start, count, step, conjunction((guard, test)))
        case other:
            raise AssertionError(f"unexpected loop body {other}")


def _row_loops(piece: isl.Map, context: isl.Set) -> Iterator[Loop]:
    """Loops without guards over the keys of query q, splitting keys by residue where the piece needs it."""
    loops = list(_loops(_range_over(piece, "q"), context))
    if all(loop.guard == TRUE for loop in loops):
        yield from loops
        return
    modulus = _key_modulus(piece)
    if modulus > MAX_RESIDUES:
        raise BudgetExceeded(f"the keys of a row repeat with a period of {modulus}, over {MAX_RESIDUES}")
    residues = piece.range().apply(isl.Map(f"[n] -> {{ [k] -> [k mod {modulus}] }}")).project_out_all_params()
    found: list[int] = []
    residues.foreach_point(lambda p: found.append(p.get_coordinate_val(isl.dim_type.set, 0).to_python()))
    for residue in sorted(found):
        one = piece.apply_range(isl.Map(f"[n] -> {{ [k] -> [u] : k = {modulus} * u + {residue} }}")).coalesce()
        for loop in _loops(_range_over(one, "q"), context):
            if loop.guard != TRUE:
                raise BudgetExceeded("the keys of a row have no closed form")
            start = op("+", op("*", modulus, loop.start), residue)
            yield Loop(start, loop.count, modulus * loop.step)


def _view_of(piece: isl.Map) -> View:
    """The view in which the pairs of a piece lie closest: few rows, or by the stride of q - k, or by a period of k or q."""
    deltas = piece.deltas()
    if deltas.is_empty():
        return IDENTITY
    if _is_few(piece.domain()):
        return IDENTITY if _is_few(piece.range()) else View(few=True)
    info = piece.reverse().deltas().get_stride_info(0)  # of q - k
    stride, offset = info.get_stride().to_python(), info.get_offset()
    if stride > 1 and offset.is_cst():
        return View(stride, offset.get_constant_val().to_python() % stride)
    keys, rows = (_period_of(side.compute_divs().coalesce()) for side in (piece.range(), piece.domain()))
    if keys is not None and (rows is None or keys[0] * rows[1] >= rows[0] * keys[1]):
        return View(1, 0, *keys)
    return IDENTITY if rows is None else View(1, 0, *rows, packs_rows=True)


def _is_few(positions: isl.Set) -> bool:
    """Whether the positions are bounded in number for all n: near the start, near the end, or both."""
    near = isl.Set(f"[n] -> {{ [x] : 0 <= x < {MAX_FEW} or n - {MAX_FEW} <= x < n }}")
    return bool(positions.is_subset(near))


def _period_of(positions: isl.Set) -> tuple[int, int, int] | None:
    """The positions as ``width`` of every ``period`` from ``first`` on, where that leaves out half of them or more."""
    if positions.is_empty():
        return None
    modulus = _key_modulus(isl.Map.from_domain_and_range(positions, positions))
    if not 1 < modulus <= MAX_RESIDUES:
        return None
    residues = positions.apply(isl.Map(f"[n] -> {{ [k] -> [k mod {modulus}] }}")).project_out_all_params()
    first, last = residues.dim_min_val(0).to_python(), residues.dim_max_val(0).to_python()
    width = last - first + 1
    return (modulus, width, first) if 2 * width <= modulus else None


def _key_modulus(piece: isl.Map) -> int:
    """A period of the keys: shifting k by it shifts every integer division of the piece by a whole number."""
    modulus = 1
    for basic in piece.wrap().flatten().compute_divs().get_basic_sets():
        periods: list[int] = []  # of each division, 1 where k does not occur in it
        for i in range(basic.dim(isl.dim_type.div)):
            div = basic.get_div(i)
            denominator = div.get_denominator_val().to_python()
            scaled = div.get_coefficient_val(isl.dim_type.in_, 1).mul(isl.Val(denominator)).to_python()
            period = denominator // gcd(denominator, scaled)
            for j, inner in enumerate(periods):
                if inner > 1 and not div.get_coefficient_val(isl.dim_type.div, j).is_zero():
                    period = lcm(period, inner * denominator)
            periods.append(period)
        modulus = lcm(modulus, *periods)
    return modulus


_OPERATORS: Any = isl.ast_expr_op_type
_BINARY: dict[Any, Operator] = {
    _OPERATORS.add: "+",
    _OPERATORS.sub: "-",
    _OPERATORS.mul: "*",
    _OPERATORS.fdiv_q: "//",
    _OPERATORS.pdiv_q: "//",
    _OPERATORS.pdiv_r: "%",
    _OPERATORS.zdiv_r: "%",
    _OPERATORS.div: "//",
    _OPERATORS.eq: "==",
    _OPERATORS.lt: "<",
    _OPERATORS.le: "<=",
    _OPERATORS.and_: "and",
    _OPERATORS.and_then: "and",
    _OPERATORS.or_: "or",
    _OPERATORS.or_else: "or",
    _OPERATORS.min: "min",
    _OPERATORS.max: "max",
}
_SWAPPED: dict[Any, Operator] = {_OPERATORS.gt: "<", _OPERATORS.ge: "<="}


def _condition(expr: isl.AstExpr) -> Scalar:
    """A boolean expression; the library writes its constants as 0 and 1."""
    value = _scalar(expr)
    return Const(bool(value.value)) if isinstance(value, Const) else value


def _scalar(expr: isl.AstExpr) -> Scalar:
    kind = isl.ast_expr_type
    match expr.get_type():
        case kind.int:
            return Const(expr.get_val().to_python())
        case kind.id:
            return Var(expr.get_id().get_name())
    operator: Any = expr.get_op_type()
    args = [_scalar(expr.get_op_arg(i)) for i in range(expr.get_op_n_arg())]
    if operator in _BINARY:
        name = _BINARY[operator]
        folded = args[0]
        for arg in args[1:]:
            folded = op(name, folded, arg)
        return folded
    if operator in _SWAPPED:
        return op(_SWAPPED[operator], args[1], args[0])
    if operator == _OPERATORS.minus:
        return op("-", ZERO, args[0])
    if operator in (_OPERATORS.cond, _OPERATORS.select):
        return op("where", args[0], args[1], args[2])
    raise AssertionError(f"unexpected operator {operator}")
