"""The gradients of k and v as Gluon source for Hopper: tiles of keys walk tiles of queries.

As in `gluon_program`, the loops are printed twice: for the warpgroup that copies queries, gradients of the output and what
belongs to their rows, and for the consumers, which have 64 keys each.
"""

from __future__ import annotations

from patternc.lower.plan import Gather, HeadPlan, Picked, Walk
from patternc.scalar import Var

from .segments import ByLap, BySegment, Segment, residue_of, wide
from .triton_program import Keys, Program

_LAYOUTS = (
    "SCORES: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])",
    "OF_KEYS: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])",
    "OF_VALUES: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_V, 16])",
    "LINE: tl.constexpr = gl.SliceLayout(0, SCORES)",
    "KEYS: tl.constexpr = gl.DotOperandLayout(0, OF_KEYS, 2)",
    "VALUES: tl.constexpr = gl.DotOperandLayout(0, OF_VALUES, 2)",
)

_SUMS = (("k", "OF_KEYS", "BLOCK_D", "HEAD_DIM"), ("v", "OF_VALUES", "BLOCK_V", "VALUE_DIM"))
"""What is added up: the letter, the layout, and the dims, padded and as they are."""


def regular(group: HeadPlan) -> bool:
    """Whether a pass over keys walks nothing but tiles that the copy engine can load."""
    walks = [phase.view for phase in group.phases if isinstance(phase, Walk)]
    tiles = group.phases and not any(isinstance(phase, Gather | Picked) for phase in group.phases)
    return bool(tiles) and all(view.stride > 1 or view.key == Var("u") for view in walks)


class ByKey(BySegment, Keys):
    """A tile of keys, 64 for each consumer, walks tiles of queries."""

    copied, given = "qgkv", "norm, delta"
    pointers: tuple[str, ...] = ("q_view", "g_view", "k_view", "v_view", "norm_ptr", "delta_ptr", "dk_ptr", "dv_ptr")
    strides = ()
    copied_rows = dict.fromkeys("kv", "64")
    constants = Program.constants
    shared: tuple[str, ...] = ("k_s", "v_s", "q_s", "g_s", "norm_s", "delta_s", "kept", "full", "done")
    layouts: tuple[str, ...] = _LAYOUTS
    _parity = "0"
    """Which turn of the keys' places this is."""
    _around: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
    """What comes before and after the steps of a segment."""
    _products = ""
    """Begins the products of keys and values with a tile, and waits for the first."""
    _through = "v_s.index(SLOT)", "v_s.index(SLOT)"
    """Where sums are turned: what is there is read by this consumer alone, and no more."""
    _masked_end, _also = "tl.minimum(tl.maximum(masked, begin), end)", ""
    """Where the masked ones of a program's steps end, and what masks say beyond what the plan does."""

    def source(self) -> str:
        segments = self._every()
        return self._warpgroups(self._copies(segments), self._consumer(segments), self._memory())

    def _memory(self) -> list[str]:
        """The tiles in shared memory, and the barriers."""
        own, line = self.consumers, "gl.SwizzledSharedLayout(1, 1, 1, [0])"
        tiles = (
            *(("k", own, "64", "BLOCK_D"), ("v", own, "64", "BLOCK_V")),
            *(("q", 2, "COLUMNS", "BLOCK_D"), ("g", 2, "COLUMNS", "BLOCK_V")),
        )
        return [
            "ELEMENT: tl.constexpr = k_view.dtype",
            *(
                f"{t}_s = gl.allocate_shared_memory(ELEMENT, [{places}, 1, 1, 1, {rows}, {block}], {t}_view.layout)"
                for t, places, rows, block in tiles
            ),
            *(f"{name}_s = gl.allocate_shared_memory(tl.float32, [2, COLUMNS], {line})" for name in ("norm", "delta")),
            f"kept, full, done = barriers(1, 1), barriers(2, 2), barriers(2, {own})",
        ]

    # Copies.

    def _copies(self, segments: list[Segment]) -> list[str]:
        steps = ["at_base = (b64 * heads + head) * n_q", "norm_at, delta_at = norm_ptr + at_base, delta_ptr + at_base"]
        for segment in segments:
            place = f"batch, head, {residue_of(segment.view)}, first, n, {segment.view.stride}"
            steps += [
                *self._turns(segment),
                "for t in range(begin, end):",
                *("    " + line for line in segment.tile),
                "    first = (J * COLUMNS).to(tl.int32)",
                f"    copy_queries(q_view, g_view, {place}, norm_at, delta_at, shared, step, COLUMNS, BLOCK_D, BLOCK_V)",
                "    step += 1",
            ]
        own = f"batch, kv, {'r' if self.group.stride > 1 else '0'}, first_row.to(tl.int32)"
        return self._laps(
            [
                *self._place(),
                *self._key_head,
                "shared = q_s, g_s, norm_s, delta_s, full, done",
                *self._awaited(),
                f"keep_keys(k_view, v_view, {own}, k_s, v_s, kept, {self.consumers}, BLOCK_D, BLOCK_V)",
                *self._each_head(steps),
            ]
        )

    def _awaited(self) -> list[str]:
        """What keys are copied after."""
        return []

    # Consumers.

    def _layouts(self) -> list[str]:
        """Of products and sums."""
        return list(self.layouts)

    def _consumer(self, segments: list[Segment]) -> list[str]:
        steps = [line for name, atom in self.atoms for line in self._atom_setup(name, atom)]
        for segment in segments:
            steps += self._segment(segment)
        body = [
            *self._place(),
            *self._key_head,
            f"rows = {self._rows_in('SCORES')}",
            f"k = rows[:, None]{'.to(tl.int64)' if self.wide else ''}",
            *(line for given in _SUMS for line in self._begun(*given)),
            f"mbarrier.wait(kept.index(0), {self._parity})",
            *self._walked(steps),
            *self._results(),
        ]
        start = ["factor = scale * 1.4426950408889634", "zero = gl.zeros([64, COLUMNS], gl.float32, SCORES)"]
        return [*self._layouts(), *start, *self._laps(body)]

    def _walked(self, steps: list[str]) -> list[str]:
        """The steps of all heads, and what comes before and after them."""
        raise NotImplementedError

    def _begun(self, letter: str, layout: str, block: str, dim: str) -> list[str]:  # noqa: ARG002
        """The sums before the first step."""
        return [f"d{letter} = gl.zeros([64, {block}], gl.float32, {layout})"]

    def _results(self) -> list[str]:
        """Results go through shared memory, so that threads store 16 bytes."""
        turned, stored = [], []
        for (letter, _, block, dim), tile in zip(_SUMS, self._through, strict=True):
            layout = f"WIDE_{letter.upper()}"
            turned += [
                wide(layout, block),
                f"through_s = {tile}.reshape([64, {block}])",
                f"d{letter} = through(through_s, d{letter}{' * scale' if letter == 'k' else ''}, {layout})",
            ]
            stored += self._stored(letter, layout, block, dim)
        return [*turned, *self._left(), *stored]

    def _left(self) -> list[str]:
        """What is said once the keys are no longer needed."""
        return []

    def _stored(self, letter: str, layout: str, block: str, dim: str) -> list[str]:
        return [*self._own(layout, block, dim), f"tl.store(d{letter}_ptr + at, d{letter}, mask=inside)"]

    def _own(self, layout: str, block: str, dim: str) -> list[str]:
        """Where the sums of these keys are in memory."""
        return [
            f"rows = {self._rows_in(layout)}",
            f"dims = gl.arange(0, {block}, gl.SliceLayout(0, {layout}))[None, :]",
            f"at = ((b64 * kv_heads + kv) * n + rows)[:, None] * {dim} + dims",
            f"inside = (rows < n)[:, None] & (dims < {dim})",
        ]

    def _segment(self, segment: Segment) -> list[str]:
        first, last = self._around
        masked = ["    " + line for line in self._turn(segment, masked=True)]
        if segment.masked == segment.total:
            loops = ["for t in range(begin, end):", *masked]
        else:
            free = ["    " + line for line in self._turn(segment, masked=False)]
            loops = [
                f"masked = {self._masked_end}",
                "for t in range(begin, masked):",
                *masked,
                "for t in range(masked, end):",
                *free,
            ]
        return [*self._turns(segment), *first, *loops, *last]

    def _turn(self, segment: Segment, masked: bool) -> list[str]:
        weights = ["p = gl.exp2(scores * factor - norm[None, :])"]
        if masked:
            columns, held = self._columns_held(segment, "first + gl.arange(0, COLUMNS, LINE)")
            weights = [
                *columns,
                f"p = gl.exp2(gl.where({self._also}{held}, scores * factor - norm[None, :], float('-inf')))",
            ]
        return [
            *(segment.tile if masked else segment.free),
            "first = (J * COLUMNS).to(tl.int32)",
            self._products,
            *weights,
            *self._folded(),
        ]

    def _folded(self) -> list[str]:
        """What a step adds."""
        raise NotImplementedError


class SpecialisedKeys(ByLap, ByKey):
    """`Keys` with a warpgroup of its own for copies."""

    kind = "specialised_keys"
    suits = "fits_keys(blocks, n_q == n)"
    pointers = (*ByKey.pointers, "dk_prior", "dv_prior")
    constants = (*ByKey.constants, "CARRY", "LAST")
    shared = (*ByKey.shared, "left")
    _parity = "lap & 1"
    _through = "k_s.index(SLOT)", "v_s.index(SLOT)"
    _products = "scores, slopes, norm = begin_both(tiles, full, step, zero, SLOT, BLOCK_D, BLOCK_V, SCORES)"

    def _layouts(self) -> list[str]:
        lines = super()._layouts()
        for letter, held, block, dim in _SUMS if self.in_order else ():
            lines.append(f"{self._sums(letter, held)}: tl.constexpr = sums_layout({block}, {dim}, {held})")
        return lines

    @property
    def packs_rows(self) -> bool:
        return self.group.rows.packs_rows

    def _memory(self) -> list[str]:
        return [*super()._memory(), f"left = barriers(1, {self.consumers})"]

    def _awaited(self) -> list[str]:
        return ["mbarrier.wait(left.index(0), (lap & 1) ^ 1)"]

    def _walked(self, steps: list[str]) -> list[str]:
        return ["shared, tiles = (q_s, g_s, done), (k_s, v_s, q_s, g_s, norm_s, delta_s)", *self._each_head(steps)]

    def _own(self, layout: str, block: str, dim: str) -> list[str]:
        if not self.group.share:
            return super()._own(layout, block, dim)
        return [
            f"lanes = SLOT * 64 + gl.arange(0, 64, gl.SliceLayout(1, {layout}))",
            f"rows = {self._left_at('kv', 'kv_heads')}",
            f"dims = gl.arange(0, {block}, gl.SliceLayout(0, {layout}))[None, :]",
            f"at = rows[:, None] * {dim} + dims",
            f"inside = (rows >= 0)[:, None] & (dims < {dim})",
        ]

    def _begun(self, letter: str, layout: str, block: str, dim: str) -> list[str]:
        """Sums from what other passes, other groups of heads, and shares have left."""
        left = self._left_by_passes(f"tl.load(d{letter}_prior + at, mask=inside, other=0.0)", layout, dim)
        lines = [
            *super()._begun(letter, layout, block, dim),
            "if CARRY:",
            *("    " + line for line in self._own(self._sums(letter, layout), block, dim)),
            f"    d{letter} = {left}",
        ]
        if self.shares:
            lines += [*self._own(layout, block, dim), f"lanes = SLOT * 64 + gl.arange(0, 64, gl.SliceLayout(1, {layout}))"]
        for i in range(len(self.shares)):
            lines += [
                *self._shared_places(i),
                f"at = ((b64 * kv_heads + kv) * share_{i}_rows + shared)[:, None] * {dim} + dims",
                f"d{letter} += tl.load(share_{i}_d{letter} + at, mask=held[:, None] & inside, other=0.0)",
            ]
        return lines

    def _sums(self, letter: str, layout: str) -> str:
        """The layout of what passes leave one another."""
        return f"SUMS_{letter.upper()}" if self.in_order else layout

    def _results(self) -> list[str]:
        straight = self._left()
        for letter, layout, block, dim in _SUMS:
            sums = self._sums(letter, layout)
            straight += [f"d{letter} = in_fours(d{letter}, {sums}, {dim})"] if self.in_order else []
            straight += self._stored(letter, sums, block, dim)
        parts = ("if LAST:", [*super()._results()]), ("else:", straight)
        return [line for head, body in parts for line in (head, *("    " + x for x in body))]

    def _left(self) -> list[str]:
        return ["fence_async_shared()", "mbarrier.arrive(left.index(0))"]

    def _folded(self) -> list[str]:
        return ["dk, dv = fold_keys(p, slopes, dk, dv, step, shared, BLOCK_D, BLOCK_V, KEYS, VALUES)", "step += 1"]
