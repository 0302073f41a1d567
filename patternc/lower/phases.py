"""Parts to phases: which keys are walked as tiles in closed form, which are listed, and which are gathered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from patternc.diagnostics import PatternError
from patternc.lower.cost import REFERENCE_LENGTH, row_tiles, work
from patternc.lower.normalise import AtomTable, Part, disjoint_parts, without
from patternc.lower.plan import Gather, HeadPlan, Listed, Phase, Picked, Plan, Selection, Tile, Walk
from patternc.lower.views import split
from patternc.pattern import Pattern
from patternc.relation import IDENTITY, BudgetExceeded, Loop, Relation, View
from patternc.scalar import FALSE, TRUE, Scalar, conjunction, op, variables
from patternc.scorers import ScoreInput
from patternc.terms import Document, Layout, Meaning, Random, TopK

JOINT_LENGTH, JOINT_AREA = 1024, 1.5
"""Pairs of a row, in whole tiles, from which one pass for all gradients is faster than two, each of which computes the scores,
as measured on an H200; and how many more pairs the tiles may hold than those of two passes."""


def lower(pattern: Pattern, tile: Tile, layer: int | None = None, *, views: bool = False, splits: bool = False) -> Plan:
    """The plan of one layer of a pattern, without `Plan.keys`.

    ``views`` allows views of rows and keys, ``splits`` passes over some rows only (see `HeadPlan.share`), and over the lists of
    selections (`HeadPlan.picked`).

    Raises:
        PatternError: the layers or branches differ and none was chosen, or the candidates of a `random` have no closed form.
    """
    if pattern.branches:
        message = f"'gated' joins several attentions ({', '.join(pattern.branches)}), and no branch was chosen"
        first = pattern.branches[0]
        raise PatternError("which-branch", message, None, f"take one: pattern.branch('{first}'), or --branch {first}")
    groups = _groups(pattern, layer)
    passes = _lowered(pattern, groups, tile, views=views, splits=splits, inverse=False)
    return Plan(str(pattern), tile, _inputs(pattern, groups), passes)


def with_keys(plan: Plan, pattern: Pattern, tile: Tile, layer: int | None = None) -> Plan:
    """The plan with `Plan.keys`, for tiles of that many keys (rows) and queries (columns)."""
    passes = _lowered(pattern, _groups(pattern, layer), tile, views=True, splits=True, inverse=True)
    return replace(plan, key_tile=tile, keys=passes)


def with_queries(plan: Plan, pattern: Pattern, tile: Tile, layer: int | None = None) -> Plan:
    """The plan with `Plan.queries`, for tiles of that many queries (rows) and keys (columns)."""
    passes = _lowered(pattern, _groups(pattern, layer), tile, views=True, splits=True, inverse=False)
    return replace(plan, query_tile=tile, queries=passes)


def with_joint(plan: Plan, pattern: Pattern, tile: Tile, layer: int | None = None) -> Plan:
    """The plan with `Plan.joint`, if all heads are alike, walk tiles only, and it is worth it.

    That is if rows are long, and if rows and keys as they are do nearly as well as the views of `Plan.keys`.
    """
    groups = _groups(pattern, layer)
    if len(groups) > 1 or plan.key_tile is None:
        return plan
    least = JOINT_LENGTH * row_tiles(tile.rows, IDENTITY, REFERENCE_LENGTH) * tile.rows
    most = JOINT_AREA * _area(plan, plan.keys, plan.key_tile)
    if least > most:
        return plan
    (group,) = _lowered(pattern, groups, tile, views=False, splits=False, inverse=True)
    tiles = all(isinstance(phase, Walk | Listed) for phase in group.phases)
    worth = tiles and least <= _area(plan, (group,), tile) <= most
    return replace(plan, joint_tile=tile, joint=group) if worth else plan


def _area(plan: Plan, passes: tuple[HeadPlan, ...], tile: Tile) -> float:
    """The pairs in all tiles that passes walk, at the reference length."""
    done = work(replace(plan, heads=passes, tile=tile))
    return (done.full + done.partial) * tile.rows * tile.columns


def _groups(pattern: Pattern, layer: int | None) -> dict[Meaning, list[int]]:
    """The heads by what they mean."""
    groups: dict[Meaning, list[int]] = {}
    for head in range(pattern.heads):
        groups.setdefault(pattern.meaning(head=head, layer=layer), []).append(head)
    return groups


def _lowered(
    pattern: Pattern, groups: dict[Meaning, list[int]], tile: Tile, *, views: bool, splits: bool, inverse: bool
) -> tuple[HeadPlan, ...]:
    passes = []
    try:
        for meaning, heads in groups.items():
            atoms = AtomTable()
            turned = [(part, part.relation.inverse() if inverse else part.relation) for part in disjoint_parts(meaning, atoms)]
            lists = sum(any(isinstance(choice, TopK) for choice in part.choices) for part, _ in turned)
            found = _Phases(tile, atoms, views=views, splits=splits, inverse=inverse, blocks=lists == 1)
            for part, relation in turned:
                found.add(part, relation)
            passes += found.passes(tuple(heads), pattern.heads)
    except BudgetExceeded as error:
        raise PatternError("too-complex", f"this pattern cannot be lowered: {error}", pattern.expression.span) from None
    return tuple(passes)


def _inputs(pattern: Pattern, groups: Iterable[Meaning]) -> tuple[tuple[str, Layout | Document | ScoreInput], ...]:
    uses: dict[str, Layout | Document | ScoreInput] = {}
    for use in (_plain(use) for meaning in groups for use in meaning.arguments):
        known = uses.setdefault(use.name, use)
        if type(known) is not type(use) or known.shape_key != use.shape_key:
            message = f"the runtime input '{use.name}' is used in two ways: {known} and {use}"
            raise PatternError("input-conflict", message, pattern.expression.span, "give the two inputs different names")
    return tuple(uses.items())


def _plain(use: Layout | Document | ScoreInput) -> Layout | Document | ScoreInput:
    match use:
        case Layout(name, block):
            return Layout(name, block)
        case Document(name):
            return Document(name)
    return use


class _Phases:
    """The phases of one group of heads, by the rows that they share."""

    def __init__(self, tile: Tile, atoms: AtomTable, *, views: bool, splits: bool, inverse: bool, blocks: bool):
        self._tile, self._atoms = tile, atoms
        self._views, self._splits, self._inverse, self._blocks = views, splits, inverse, blocks
        self._selections: list[Selection] = []
        self._picked: list[Phase] = []
        self._by_rows: dict[View, list[Phase]] = {}
        self._visits: dict[View, tuple[Loop, ...]] = {}

    def add(self, part: Part, relation: Relation) -> None:
        """The phases of a part, whose pairs of rows and columns are ``relation``."""
        if self._splits and any(isinstance(choice, TopK) for choice in part.choices):
            self._picked.append(self._listed_keys(part))
            return
        if not self._views or part.filters or part.choices:
            self._by_rows.setdefault(IDENTITY, []).append(self._phase(part, relation))
            return
        for view, piece in split(relation, self._tile, splits=self._splits):
            tiles = piece.tiles(self._tile.rows, self._tile.columns, view)
            mask = (piece.inverse() if self._inverse else piece).predicate
            walk = Walk(tiles.full, tiles.partial, mask, tiles.exact, view=view)
            self._by_rows.setdefault(view.rows, []).append(walk)
            if view.few:
                self._visits[view] = tiles.visits

    def passes(self, heads: tuple[int, ...], period: int) -> list[HeadPlan]:
        """One pass for each choice of rows: shares first, then the rows as they are, then those packed by strides.

        The lists of selections come last.
        """
        shares = [rows for rows in self._by_rows if rows.few or rows.packs_rows]
        if shares or not (self._by_rows or self._picked):
            self._by_rows.setdefault(IDENTITY, [])
        order = [*shares, *sorted((rows for rows in self._by_rows if rows not in shares), key=lambda rows: rows.stride)]
        last = len(order) - (not self._picked)
        selections = tuple(self._selections)
        found = [
            HeadPlan(
                heads,
                period,
                self._atoms.items if rows == IDENTITY else (),
                selections if rows == IDENTITY and not self._picked else (),
                tuple(self._by_rows[rows]),
                rows,
                self._visits.get(rows, ()),
                chained=i > len(shares),
                last=i == last,
            )
            for i, rows in enumerate(order)
        ]
        if self._picked:
            found.append(
                HeadPlan(heads, period, self._atoms.items, selections, tuple(self._picked), chained=len(order) > len(shares))
            )
        return found

    def _listed_keys(self, part: Part) -> Picked:
        """The walk over a selection's list. Whole blocks are listed where the kernel can tell which of their keys to read.

        Draws and tables of tiles may differ between heads: then each head has a list of its own, of single keys.
        """
        topks = tuple(choice for choice in part.choices if isinstance(choice, TopK))
        named = variables(part.mask) | variables(part.held)
        alike = all(isinstance(atom, Document) for name, atom in self._atoms.items if name in named)
        shared = alike and all(choice.share != "head" for choice in topks)
        unit = topks[0].block if self._blocks and len(part.choices) == 1 and alike else 1
        mask: Scalar = TRUE
        slots, blocks = part.most, None
        if unit > 1:
            exact = not part.filters and variables(part.held) <= {"q", "k", "n"}
            mask = part.relation.predicate if exact else conjunction([part.mask, op("not", part.held)])
            slots = -(-part.most // unit)
            blocks = None if part.filters else _of_blocks(part, topks[0], unit)
        self._selections.append(Selection(topks, part.mask, part.held, slots, unit, blocks))
        return Picked(len(self._selections) - 1, slots, unit, mask, shared)

    def _phase(self, part: Part, relation: Relation) -> Phase:
        topks = tuple(c for c in part.choices if isinstance(c, TopK))
        randoms = [c for c in part.choices if isinstance(c, Random)]
        if topks:
            self._selections.append(Selection(topks, part.mask, part.held, part.most))
            return Gather(len(self._selections) - 1, self._selections[-1].width, TRUE)
        if randoms:
            return _drawn(part, relation, randoms, self._tile)
        tables = tuple(self._atoms.name(f) for f in part.filters if isinstance(f, Layout) and not f.negated)
        if tables:
            return _listed(part, relation, tables, self._tile, next(f.block for f in part.filters if isinstance(f, Layout)))
        return _walk(part, relation, self._tile)


def _of_blocks(part: Part, choice: TopK, unit: int) -> tuple[Scalar, Scalar, Scalar] | None:
    """See `Selection.blocks`."""
    allowed = Relation.where(part.mask)
    forced = allowed & choice.force
    some = allowed.active_tiles(1, unit)
    if some == TRUE:  # it may be more than there are: the budget was spent
        return None
    return some, FALSE if forced.is_empty() else forced.active_tiles(1, unit), part.relation.active_tiles(1, unit)


def _drawn(part: Part, relation: Relation, randoms: list[Random], tile: Tile) -> Phase:
    """Keys drawn one by one are gathered; blocks of keys are walked as tiles. The smallest block leads."""
    lead = min(range(len(randoms)), key=lambda i: randoms[i].block)
    if randoms[lead].block == 1:
        return Gather(part.draws[lead], randoms[lead].draws, without(part.mask, part.draws[lead]))
    return _listed(part, relation, (part.draws[lead],), tile, randoms[lead].block)


def _listed(part: Part, relation: Relation, sources: tuple[str, ...], tile: Tile, block: int) -> Listed:
    """Tiles listed by the first source. Where its blocks hold whole tiles, a listed tile lies within it."""
    active, mask = relation.active_tiles(tile.rows, tile.columns), part.mask
    if block % tile.rows or block % tile.columns:
        return Listed(sources, active, mask)
    mask = without(mask, sources[0])
    plain = variables(mask) <= {"q", "k", "n"}
    return Listed(sources, active, mask, relation.full_tiles(tile.rows, tile.columns) if plain else FALSE)


def _walk(part: Part, relation: Relation, tile: Tile) -> Walk:
    tiles = relation.tiles(tile.rows, tile.columns)
    if not part.filters:
        return Walk(tiles.full, tiles.partial, part.mask, tiles.exact)
    documents = tuple(f.name for f in part.filters if isinstance(f, Document) and not f.negated)
    if len(documents) == len(part.filters) and not part.rests_on_others:
        return Walk(tiles.full, tiles.partial, part.mask, tiles.exact, documents)
    return Walk((), tiles.full + tiles.partial, part.mask, tiles.exact, documents)
