"""Tiles as warp-specialised kernels walk them: the same text for the warpgroup that copies and for those that multiply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import indent

from patternc.lower.plan import Gather, HeadPlan, Listed, Phase, Picked, Tile, Walk
from patternc.relation import View
from patternc.scalar import TRUE, Const, Op, Scalar, Var, op

from .laps import PARTS, shift_for, tiles_of_rows
from .printer import POSITION_LIMIT, triton
from .triton_program import Program, kinds

LONG = 64
"""Tiles of a row above which every program has one piece of work: all that run at a time then read the same keys."""


@dataclass(frozen=True)
class Segment:
    """Tiles that one pipeline of products runs over: the ``masked`` ones of ``total`` come first.

    ``setup`` computes both, ``tile`` the ``t``-th tile J, and ``free`` that of those which are not masked.
    """

    setup: list[str]
    masked: str
    total: str
    tile: list[str]
    free: list[str]
    mask: Scalar
    guards: list[str]
    view: View
    one_masked: bool = False
    """Whether at most one tile is masked."""


class BySegment(Program):
    """A program whose warpgroups agree on tiles without a word: each computes which there are."""

    options, described, always_copied, drawn_from_table = "specialised(rows)", "shared_view", True, True
    shared: tuple[str, ...] = ()
    """What its warpgroups have in shared memory."""
    registers = 240, 24
    """Of a thread of a consumer but the first, and of one that copies."""
    in_order = False
    """Whether passes leave sums for one another as `in_fours` says: all passes over these rows are of this kind."""

    def __init__(self, index: int, group: HeadPlan, tile: Tile, shares: tuple[HeadPlan, ...], source: int):
        super().__init__(index, group, tile, shares, source)
        self.consumers = tile.rows // 64
        """The warpgroups that multiply, beside the one that copies."""

    def _warpgroups(self, copies: list[str], consumer: list[str], memory: list[str], consumed: Sequence[str] = ()) -> str:
        """Three functions: the copies, the consumers, and the kernel that starts both.

        ``memory`` allocates what is shared, and ``consumed`` are the parameters that consumers take: all by default.
        """
        values, unspecialised = self._signature()
        shared, typed = ", ".join(self.shared), ", ".join(f"{c}: tl.constexpr" for c in self.constants)
        names = {"copies": values, "consumer": consumed or values}
        given = {part: f"{shared}, {', '.join(some)}" for part, some in names.items()}
        heads = {"copies": given["copies"], "consumer": f"SLOT: tl.constexpr, {given['consumer']}"}
        parts = [
            f"@gluon.jit\ndef {self.name}_{part}(\n    {heads[part]},\n    {typed}\n):\n" + indent("\n".join(body), "    ")
            for part, body in {"copies": copies, "consumer": consumer}.items()
        ]
        constants = ", ".join(self.constants)
        main = [
            *memory,
            "fence_async_shared()",
            "gl.warp_specialize(",
            "    [",
            *(f"        ({self.name}_consumer, ({slot}, {given['consumer']}, {constants}))," for slot in range(self.consumers)),
            f"        ({self.name}_copies, ({given['copies']}, {constants})),",
            "    ],",
            f"    {[4] * self.consumers!r},",
            f"    {[self.registers[0]] * (self.consumers - 1) + [self.registers[1]]!r},",
            ")",
        ]
        head = f"@gluon.jit(do_not_specialize={unspecialised!r})\ndef {self.name}(\n    {', '.join(values)},\n    {typed}\n):\n"
        return "\n\n\n".join([*parts, head + indent("\n".join(main), "    ")])

    def _laps(self, body: list[str]) -> list[str]:
        """What a program does, once."""
        return ["step = 0", *body]

    def _rows_in(self, layout: str, slot: str = "SLOT") -> str:
        """The rows of a consumer."""
        return self._positions(f"tile * ROWS + {slot} * 64 + gl.arange(0, 64, gl.SliceLayout(1, {layout}))")

    def _every(self) -> list[Segment]:
        return [segment for i, phase in enumerate(self.group.phases) for segment in self._segments(i, phase)]

    def _segments(self, i: int, phase: Phase) -> list[Segment]:
        match phase:
            case Walk(full, partial, mask, _, documents, view):
                setup: list[str] = []
                masked = [(loop, "", "") for loop in partial]
                free = [(loop, "", "") for loop in full]
                if documents:
                    setup = self._clip(i, len(documents))
                    masked = [(loop, "low", "high") for loop in partial]
                    for loop in full:
                        masked += [(loop, "low", "low_inside"), (loop, "high_inside", "high")]
                    free = [(loop, "low_inside", "high_inside") for loop in full]
                masked += [one for one in free if one[0].guard != TRUE]
                free = [one for one in free if one[0].guard == TRUE]
                key, loops = f"{i}_", [loop for loop, _, _ in masked + free]
                if not loops:
                    return []
                setup += self._counts(key, masked + free)
                counts, first = [f"count_{key}{j}" for j in range(len(loops))], len(masked)
                return [
                    Segment(
                        setup,
                        " + ".join(counts[:first]) or "0",
                        " + ".join(counts),
                        self._nth(key, loops),
                        self._nth(key, loops, first),
                        mask,
                        [self._guard(key, j, loops) for j in range(first) if loops[j].guard != TRUE],
                        view,
                        sum(_most(loop.count) for loop, _, _ in masked) <= 1,
                    )
                ]
            case Listed():
                found = []
                for kind, wanted in kinds(phase):
                    at = f"b64 * list_{i}_b + head.to(tl.int64) * list_{i}_h + {self._listed_tile}"
                    setup = [
                        f"at_{i} = {at}",
                        f"list_{i}{kind}_at = list_{i}{kind} + tl.load(begin_{i}{kind} + at_{i})",
                        f"length_{i}{kind} = tl.load(count_{i}{kind} + at_{i})",
                    ]
                    count = f"length_{i}{kind}"
                    masked_count = "0" if wanted is None else count
                    tile = [f"J = tl.load(list_{i}{kind}_at + t)"]
                    found.append(Segment(setup, masked_count, count, tile, tile, phase.mask, [], View()))
                return found
            case Gather() | Picked():
                raise AssertionError("pairs one by one are not for the copy engine")

    def _columns_held(self, segment: Segment, index: str) -> tuple[list[str], str]:
        """Lines for the positions of a tile's columns, which are at an ``index`` of the view, and which pairs are held."""
        columns = triton(segment.view.key, {"u": f"({index})"})
        lines = [
            f"{self._column} = ({columns})[None, :]{'.to(tl.int64)' if self.wide else ''}",
            "safe_q, safe_k = tl.minimum(q, n - 1), tl.minimum(k, n - 1)",
        ]
        return lines, " & ".join([f"({self._mask(segment.mask)})", *segment.guards])

    def _left_by_passes(self, load: str, held: str, dim: str) -> str:
        """Sums that are loaded from where the pass before has left them, in the layout ``held``."""
        return f"in_pairs({load}, {held}, {dim})" if self.in_order else load

    def _turns(self, segment: Segment) -> list[str]:
        """The steps ``begin`` to ``end`` of a segment that this program takes, and how many of all are masked."""
        lines = [*segment.setup, f"masked = {segment.masked}", f"end = tl.where(n > 0, {segment.total}, 0)"]
        if not self.group.share:
            return [*lines, "begin = 0"]
        return [
            *lines,
            "every = end.to(tl.int64)",
            "begin = (every * turn // splits).to(tl.int32)",
            "end = (every * (turn + 1) // splits).to(tl.int32)",
        ]


class ByLap(BySegment):
    """Every program works on tiles ``work`` until all are done, and copies for the next while it multiplies for this one."""

    grid, own_lengths = "(programs(width * height, rows, q.device), 1, 1)", ("width", "height")
    most, least = "programs(1 << 30, rows, q.device)", PARTS
    _program = "work % width", "work // width"
    _programs = "width", "height"

    def __init__(self, index: int, group: HeadPlan, tile: Tile, shares: tuple[HeadPlan, ...], source: int):
        super().__init__(index, group, tile, shares, source)
        self.longest = int(tiles_of_rows(group, tile).max())
        """The most tiles that a row tile walks."""
        self.shift = shift_for(group, tile, self._last_first)
        """How programs take turns: see `work_of`."""
        if group.share:  # the longest rows of all heads first: there are too few for turns to even out
            self._program = "work // height", "work % height"
        if self.longest > LONG:
            self.grid = "(width * height, 1, 1)"

    def _laps(self, body: list[str]) -> list[str]:
        every = (
            f"laps = laps_of(width * height, {self.shift})",
            "for lap in range(0, laps):",
            f"    work = work_of(lap, {self.shift})",
        )
        return ["step = 0", *every, *("    " + line for line in body)]


class QueriesByLap(ByLap):
    """Rows are queries, and tiles of keys and values are copied for them."""

    _index = "J * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, SCORES))"

    def _scalars(self) -> list[str]:
        """Whose turn it is: the tile and its heads."""
        return [*self._place(), "head = slot // RUN * PERIOD + FIRST + slot % RUN", "kv = head // sharing"]

    def _copied(self, segments: list[Segment]) -> list[str]:
        """The copies of keys and of values, tile by tile, into their rings."""
        lines = []
        for segment in segments:
            packed = str(self.packed.index(segment.view)) if segment.view in self.packed else ""
            at = f"batch, kv, {residue_of(segment.view)}, (J * COLUMNS).to(tl.int32)"
            lines += [
                *self._turns(segment),
                "for t in range(begin, end):",
                *("    " + line for line in segment.tile),
                f"    copy_tile(k{packed}_view, {at}, k_s, k_full, k_empty, step, COLUMNS * BLOCK_D * 2, STAGES)",
                f"    copy_tile(v{packed}_view, {at}, v_s, v_full, v_empty, step, COLUMNS * BLOCK_V * 2, STAGES)",
                "    step += 1",
            ]
        return lines


def wide(name: str, block: str) -> str:
    """A layout of rows as they lie in memory, 16 bytes a thread."""
    return f"{name}: tl.constexpr = gl.BlockedLayout([1, 8], [256 // {block}, {block} // 8], [4, 1], [1, 0])"


def residue_of(view: View) -> str:
    """Which of the residues of a view's keys are met by the rows of residue r."""
    return triton(op("%", op("-", Var("r"), view.offset), view.stride)) if view.stride > 1 else "0"


def _most(count: Scalar) -> int:
    """An upper bound of the tiles of a loop."""
    match count:
        case Const(value):
            return int(value)
        case Op("where", (_, first, second)):
            return max(_most(first), _most(second))
    return POSITION_LIMIT
