"""The plan: what a kernel does, as data. Emitters print it; nothing here knows about a backend.

Masks are `Scalar` conditions over ``q``, ``k``, ``n`` and *atoms*: named booleans of a pair that a backend computes from
runtime inputs (a block table, document ids) or from the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from patternc.relation import IDENTITY, Loop, View
from patternc.scalar import FALSE, TRUE, Scalar, Var, conjuncts, op, text
from patternc.scorers import ScoreInput
from patternc.terms import Document, Layout, Random, TopK


@dataclass(frozen=True)
class Tile:
    """Queries and keys that one step of a kernel works on."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


@dataclass(frozen=True)
class Draws:
    """The key blocks that a query block draws: ``choice`` over the candidates that ``loops`` list (in ``q``, the block)."""

    choice: Random
    loops: tuple[Loop, ...]


Atom: TypeAlias = Layout | Document | Draws
Atoms: TypeAlias = tuple[tuple[str, Atom], ...]


@dataclass(frozen=True)
class Walk:
    """Key tiles in closed form: those of ``full`` without a mask, those of ``partial`` with it.

    ``documents`` names the runtime inputs whose documents bound the loops: a tile of ``full`` needs no mask where it lies
    within one document of each. Tiles count positions in the ``view``.
    """

    full: tuple[Loop, ...]
    partial: tuple[Loop, ...]
    mask: Scalar
    exact: bool = True
    documents: tuple[str, ...] = ()
    view: View = IDENTITY

    def __str__(self) -> str:
        lines = [f"full     {_loops(self.full)}"] if self.full else []
        lines += [f"partial  {_loops(self.partial)}  where {text(self.mask)}"] if self.partial else []
        lines += [f"within the documents of {', '.join(self.documents)}"] if self.documents else []
        lines += [] if self.exact else ["(tiles over-approximated: the exact set was over its budget)"]
        view = "" if self.view == IDENTITY else f" in the view {self.view}"
        return f"walk key tiles J of row tile I{view}\n" + "\n".join(f"  {line}" for line in lines)


@dataclass(frozen=True)
class Listed:
    """Key tiles that are listed at run time: those of ``active`` (in I, J, n) that the atoms in ``sources`` may hold.

    Tiles of ``full`` need no mask: a listed one holds all its pairs.
    """

    sources: tuple[str, ...]
    active: Scalar
    mask: Scalar
    full: Scalar = FALSE

    def __str__(self) -> str:
        full = "" if self.full == FALSE else f"\n  full     where {text(self.full)}"
        return f"walk the key tiles listed by {', '.join(self.sources)}{full}\n  partial  where {text(self.mask)}"


@dataclass(frozen=True)
class Gather:
    """Keys fetched one by one for each query: the draws of atom ``source``, or the list of a selection."""

    source: str | int
    slots: int
    mask: Scalar

    @property
    def drawn(self) -> str:
        """The atom; a list of a selection is not fetched so by kernels."""
        assert isinstance(self.source, str)
        return self.source

    def __str__(self) -> str:
        origin = f"drawn by {self.source}" if isinstance(self.source, str) else f"of selection {self.source}"
        where = "" if self.mask == TRUE else f"\n  where {text(self.mask)}"
        return f"gather {self.slots} keys a query, {origin}{where}"


LONG_BLOCK, FEW_HEADS = 128, 16
"""Queries that list one block are brought together where it has so many keys or more, and fewer heads share a list.

Not measured: 16 heads fill a tile without that, and a short block is not worth the traffic of running outputs.
"""


@dataclass(frozen=True)
class Picked:
    """Keys that a selection lists for each query, as many at a time as a tile has columns; a pass of its own.

    The list is of blocks of ``unit`` keys, and ``mask`` says which of theirs are read. Where the list is ``shared`` by the
    query heads of a key head, those are the rows of a tile; else each head has a tile for itself. Where blocks are ``long``
    and few heads share a list, which is known at run time, the queries that list one block are the rows instead, slot by slot.
    """

    selection: int
    slots: int
    unit: int
    mask: Scalar
    shared: bool

    @property
    def long(self) -> bool:
        return self.unit >= LONG_BLOCK

    def __str__(self) -> str:
        what = "keys" if self.unit == 1 else f"blocks of {self.unit} keys"
        rows = "the heads that share a key head" if self.shared else "a head"
        where = "" if self.mask == TRUE else f"\n  where {text(self.mask)}"
        few = f"\n  or for a block at a time, slot by slot, if fewer than {FEW_HEADS} heads share a list" if self.long else ""
        return f"walk the {self.slots} {what} a query of selection {self.selection}, for {rows} at a time{few}{where}"


Phase: TypeAlias = Walk | Listed | Gather | Picked


@dataclass(frozen=True)
class Selection:
    """Before the kernel: the keys that all of ``choices`` pick among ``allowed``, less those that ``held`` already has.

    They are at most ``width`` for a query. With a ``unit`` over 1 they are blocks of so many keys; then ``blocks`` may say in
    closed form, of query I and block J, which are candidates, which of those are forced, and which have a key that is not
    held. Without it all keys are looked at.
    """

    choices: tuple[TopK, ...]
    allowed: Scalar
    held: Scalar
    width: int
    unit: int = 1
    blocks: tuple[Scalar, Scalar, Scalar] | None = None

    @property
    def causal(self) -> bool:
        """Whether the candidates are plainly not after the query: then no score of a later key is looked at."""
        return op("<=", Var("k"), Var("q")) in conjuncts(self.allowed)

    def __str__(self) -> str:
        picks = " and ".join(map(str, self.choices))
        return f"{picks} among {text(self.allowed)}, less {text(self.held)}"


@dataclass(frozen=True)
class HeadPlan:
    """One pass over the heads ``h`` with ``h % period`` in ``heads``: one softmax over its phases, in order.

    Its rows are those of the view ``rows``: all queries, those of one residue at a time, or some (a ``share``): those of
    the row tiles that ``visits`` lists, or packed ones. The work on a share's rows is split among several programs.
    A ``chained`` pass continues from the output and log-sum-exp of the passes before; the ``last`` one writes the result.
    In `Plan.keys` rows are keys, and key tiles are query tiles.
    """

    heads: tuple[int, ...]
    period: int
    atoms: Atoms
    selections: tuple[Selection, ...]
    phases: tuple[Phase, ...]
    rows: View = IDENTITY
    visits: tuple[Loop, ...] = ()
    chained: bool = False
    last: bool = True

    @property
    def stride(self) -> int:
        return self.rows.stride

    @property
    def picked(self) -> bool:
        """Whether it walks the lists of selections, and nothing else."""
        return any(isinstance(phase, Picked) for phase in self.phases)

    @property
    def share(self) -> bool:
        """Whether the pass has some rows only: the next pass over all rows takes up what it leaves."""
        return self.rows.few or self.rows.packs_rows

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The heads as contiguous runs (first, count) within a period."""
        runs: list[tuple[int, int]] = []
        for head in self.heads:
            if runs and runs[-1][0] + runs[-1][1] == head:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((head, 1))
        return tuple(runs)


@dataclass(frozen=True)
class Plan:
    """All heads of one layer. ``inputs`` are the runtime inputs by name, in the order that kernels take them.

    ``keys`` are the same passes with the roles of queries and keys exchanged, for the gradients of keys and values: rows
    are keys, and ``key_tile.rows`` of them walk tiles of ``key_tile.columns`` queries. Masks still say q and k.
    ``queries`` are the passes for the gradient of queries, in tiles of ``query_tile``; by default those of the output.
    ``joint`` is a pass like those of ``keys``, in tiles of ``joint_tile``, that computes all gradients at once where it may.
    """

    pattern: str
    tile: Tile
    inputs: tuple[tuple[str, Layout | Document | ScoreInput], ...]
    heads: tuple[HeadPlan, ...]
    key_tile: Tile | None = None
    keys: tuple[HeadPlan, ...] = ()
    query_tile: Tile | None = None
    queries: tuple[HeadPlan, ...] = ()
    joint_tile: Tile | None = None
    joint: HeadPlan | None = None

    def __str__(self) -> str:
        lines = [
            f"plan of {self.pattern}",
            f"tile {self.tile} (queries x keys), row tile I covers queries {self.tile.rows}*I..",
        ]
        for plan in self.heads:
            if plan.period > 1:
                lines.append(f"heads {', '.join(map(str, plan.heads))} of every {plan.period}")
            if plan.rows != IDENTITY or plan.chained:
                split = ", the work of a row tile split among programs" if plan.share else ""
                after = ", after what the passes before left" if plan.chained else ""
                lines.append(f"  pass over {'all rows' if plan.rows == IDENTITY else plan.rows}{split}{after}")
            lines += [f"  {name} = {_atom(atom)}" for name, atom in plan.atoms]
            lines += [f"  selection {i}: {selection}" for i, selection in enumerate(plan.selections)]
            for i, phase in enumerate(plan.phases):
                first, *rest = str(phase).split("\n")
                lines += [f"  phase {i}: {first}", *(f"           {line}" for line in rest)]
            if not plan.phases:
                lines.append("  no keys: the output is 0")
        if self.joint:
            lines.append(f"gradients at once, in tiles {self.joint_tile} (keys x queries), where their order may vary")
        return "\n".join(lines)


def _atom(atom: Atom) -> str:
    return f"{atom.choice} among {_loops(atom.loops)}" if isinstance(atom, Draws) else str(atom)


def _loops(loops: tuple[Loop, ...]) -> str:
    def one(loop: Loop) -> str:
        step = "" if loop.step == 1 else f" step {loop.step}"
        guard = "" if loop.guard == TRUE else f" if {text(loop.guard)}"
        return f"[{text(loop.start)} + 0..{text(loop.count)}){step}{guard}"

    return ", ".join(map(one, loops)) or "nothing"
