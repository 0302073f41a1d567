"""Parts to phases: which keys are walked as tiles in closed form, which are listed, and which are gathered."""

from __future__ import annotations

from collections.abc import Iterable

from patternc.diagnostics import PatternError
from patternc.lower.normalise import AtomTable, Part, disjoint_parts, without
from patternc.lower.plan import Gather, HeadPlan, Listed, Phase, Plan, Selection, Tile, Walk
from patternc.lower.views import split
from patternc.pattern import Pattern
from patternc.relation import BudgetExceeded, Relation, View
from patternc.scalar import TRUE
from patternc.terms import Document, Layout, Meaning, Random, TopK


def lower(pattern: Pattern, tile: Tile, layer: int | None = None, *, views: bool = False) -> Plan:
    """The plan of one layer of a pattern for a tile shape.

    Raises:
        PatternError: the layers differ and none was chosen, or the candidates of a `random` have no closed form.
    """
    groups: dict[Meaning, list[int]] = {}
    for head in range(pattern.heads):
        groups.setdefault(pattern.meaning(head=head, layer=layer), []).append(head)
    try:
        plans = [p for m, heads in groups.items() for p in _passes(m, tuple(heads), pattern.heads, tile, views=views)]
    except BudgetExceeded as error:
        raise PatternError("too-complex", f"this pattern cannot be lowered: {error}", pattern.expression.span) from None
    return Plan(str(pattern), tile, _inputs(pattern, groups), tuple(plans))


def _inputs(pattern: Pattern, groups: Iterable[Meaning]) -> tuple[tuple[str, Layout | Document | TopK], ...]:
    uses: dict[str, Layout | Document | TopK] = {}
    for use in (_plain(use) for meaning in groups for use in meaning.inputs):
        known = uses.setdefault(use.name, use)
        if type(known) is not type(use) or known.shape_key != use.shape_key:
            message = f"the runtime input '{use.name}' is used in two ways: {known} and {use}"
            raise PatternError("input-conflict", message, pattern.expression.span, "give the two inputs different names")
    return tuple(uses.items())


def _plain(use: Layout | Document | TopK) -> Layout | Document | TopK:
    match use:
        case Layout(name, block):
            return Layout(name, block)
        case Document(name):
            return Document(name)
    return use


def _passes(meaning: Meaning, heads: tuple[int, ...], period: int, tile: Tile, *, views: bool) -> list[HeadPlan]:
    """One pass over the rows as they are, and one for each stride by which some static piece is packed."""
    atoms = AtomTable()
    selections: list[Selection] = []
    by_stride: dict[int, list[Phase]] = {}
    for part in disjoint_parts(meaning, atoms):
        if views and not part.filters and not part.choices:
            for view, piece in split(part.relation, tile):
                by_stride.setdefault(view.stride, []).append(_viewed(view, piece, tile))
        else:
            by_stride.setdefault(1, []).append(_phase(part, tile, atoms, selections))
    passes = sorted(by_stride.items()) or [(1, [])]
    return [
        HeadPlan(
            heads,
            period,
            atoms.items if stride == 1 else (),
            tuple(selections) if stride == 1 else (),
            tuple(phases),
            stride,
            chained=i > 0,
            last=i == len(passes) - 1,
        )
        for i, (stride, phases) in enumerate(passes)
    ]


def _viewed(view: View, piece: Relation, tile: Tile) -> Walk:
    tiles = piece.tiles(tile.rows, tile.columns, view)
    return Walk(tiles.full, tiles.partial, piece.predicate, tiles.exact, view=view)


def _phase(part: Part, tile: Tile, atoms: AtomTable, selections: list[Selection]) -> Phase:
    topks = tuple(c for c in part.choices if isinstance(c, TopK))
    randoms = [c for c in part.choices if isinstance(c, Random)]
    if topks:
        selections.append(Selection(topks, part.mask, part.held))
        return Gather(len(selections) - 1, min(c.k * c.block for c in topks), TRUE)
    if randoms:
        return _drawn(part, randoms, tile)
    tables = tuple(atoms.name(f) for f in part.filters if isinstance(f, Layout) and not f.negated)
    if tables:
        return Listed(tables, part.relation.active_tiles(tile.rows, tile.columns), part.mask)
    return _walk(part, tile)


def _drawn(part: Part, randoms: list[Random], tile: Tile) -> Phase:
    """Keys drawn one by one are gathered; blocks of keys are walked as tiles. The smallest block leads."""
    lead = min(range(len(randoms)), key=lambda i: randoms[i].block)
    if randoms[lead].block == 1:
        return Gather(part.draws[lead], randoms[lead].draws, without(part.mask, part.draws[lead]))
    return Listed((part.draws[lead],), part.relation.active_tiles(tile.rows, tile.columns), part.mask)


def _walk(part: Part, tile: Tile) -> Walk:
    tiles = part.relation.tiles(tile.rows, tile.columns)
    if not part.filters:
        return Walk(tiles.full, tiles.partial, part.mask, tiles.exact)
    documents = tuple(f.name for f in part.filters if isinstance(f, Document) and not f.negated)
    return Walk((), tiles.full + tiles.partial, part.mask, tiles.exact, documents)
