"""The gradient of q as Gluon source for Hopper: tiles of queries walk tiles of keys.

As in `gluon_program`, the loops are printed twice: for the warpgroup that copies keys and values, and for the consumer, which
has 64 queries. It has the gradients of their outputs in registers, so that the next are soon copied; queries have two places.
What else belongs to the next rows is loaded before results are stored.
"""

from __future__ import annotations

from textwrap import indent

from .segments import QueriesByLap, Segment, wide
from .triton_program import Queries

_ROWS = (("q", "lap % 2", "BLOCK_D", "HEAD_DIM"), ("g", "0", "BLOCK_V", "VALUE_DIM"))
"""What belongs to rows: the letter, its place, and the dims, padded and as they are."""

_LAYOUTS = (
    "SCORES: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])",
    "LEFT: tl.constexpr = gl.DotOperandLayout(0, SCORES, 2)",
)


class SpecialisedQueries(QueriesByLap, Queries):
    """`Queries` with a warpgroup of its own for copies."""

    kind = "specialised_queries"
    suits = "fits_queries(blocks)"
    shared = ("q_s", "g_s", "k_s", "v_s", "rows_full", "g_empty", "k_full", "k_empty", "v_full", "v_empty")
    registers = 232, 40

    def source(self) -> str:
        segments = self._every()
        memory = [
            "ELEMENT: tl.constexpr = q_ptr.dtype.element_ty",
            "q_s = gl.allocate_shared_memory(ELEMENT, [2, 64, BLOCK_D], rows_layout(64, BLOCK_D, ELEMENT))",
            "g_s = gl.allocate_shared_memory(ELEMENT, [1, 64, BLOCK_V], rows_layout(64, BLOCK_V, ELEMENT))",
            "k_s = gl.allocate_shared_memory(ELEMENT, [2, 1, 1, 1, COLUMNS, BLOCK_D], k_view.layout)",
            "v_s = gl.allocate_shared_memory(ELEMENT, [2, 1, 1, 1, COLUMNS, BLOCK_V], v_view.layout)",
            "rows_full, g_empty = barriers(1, 128), barriers(1, 1)",
            *(f"{name} = barriers(2, 1)" for name in self.shared[-4:]),
        ]
        return f"{self._of_rows()}\n\n\n{self._warpgroups(self._copies(segments), self._consumer(segments), memory)}"

    # Copies.

    def _copies(self, segments: list[Segment]) -> list[str]:
        body = [*self._scalars(), "mbarrier.wait(g_empty.index(0), (lap & 1) ^ 1)"]
        for t, place, block, dim in _ROWS:
            name = {"q": "q", "g": "grad"}[t]
            layout = f"WIDE_{t.upper()}"
            body += [
                f"rows = {self._rows_in(layout, '0')}",
                f"dims = gl.arange(0, {block}, gl.SliceLayout(0, {layout}))[None, :]",
                f"base = {name}_ptr + b64 * stride_{t}b + head.to(tl.int64) * stride_{t}h",
                f"at = base + (rows - (n - n_q)).to(tl.int64)[:, None] * stride_{t}n + dims * stride_{t}d",
                f"inside = ((rows >= n - n_q) & (rows < n))[:, None] & (dims < {dim})",
                f"async_copy.async_copy_global_to_shared({t}_s.index({place}), at, mask=inside)",
            ]
        body.append("async_copy.mbarrier_arrive(rows_full.index(0), increment_count=False)")
        body += self._copied(segments)
        return ["STAGES: tl.constexpr = 2", wide("WIDE_Q", "BLOCK_D"), wide("WIDE_G", "BLOCK_V"), *self._laps(body)]

    # The consumer.

    def _consumer(self, segments: list[Segment]) -> list[str]:
        constants = [
            *_LAYOUTS,
            "OUT: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])",
            "SLOPES: tl.constexpr = gl.DotOperandLayout(0, OUT, 2)",
            "LINE: tl.constexpr = gl.SliceLayout(1, SCORES)",
            wide("WIDE", "BLOCK_D"),
            *(["SUMS: tl.constexpr = sums_layout(BLOCK_D, HEAD_DIM, OUT)"] if self.in_order else []),
            "factor = scale * 1.4426950408889634",
            "zero = gl.zeros([64, COLUMNS], gl.float32, SCORES)",
        ]
        body = [
            *self._scalars(),
            *self._taken(),
            *self._begun(),
            f"q = rows[:, None]{'.to(tl.int64)' if self.wide else ''}",
            *(line for name, atom in self.atoms for line in self._atom_setup(name, atom)),
            *(line for segment in segments for line in self._segment(segment)),
            self._loaded("lap + 1"),
            *self._results(),
        ]
        start, laps, *rest = self._laps(body)
        return [*constants, start, laps, self._loaded("0"), *rest]

    @property
    def _given(self) -> str:
        """What the consumer is given that it gives to others."""
        return ", ".join([*self._signature()[0], *self.constants])

    def _loaded(self, lap: str) -> str:
        """What belongs to the rows of a lap, and is loaded early."""
        loaded = "delta, norm" if self.group.chained else "norm, less, out"
        return f"{loaded} = {self.name}_rows({lap}, laps, {self._given})"

    def _of_rows(self) -> str:
        """A function: what belongs to the rows of a lap."""
        typed = ", ".join([*self._signature()[0], *(f"{c}: tl.constexpr" for c in self.constants)])
        lines = [
            *_LAYOUTS,
            f"work = work_of(lap, {self.shift})",
            *self._scalars(),
            f"rows = {self._rows_in('SCORES')}",
            "valid = (rows >= n - n_q) & (rows < n) & (lap < laps)",
            "at = (b64 * heads + head) * n_q + rows - (n - n_q)",
        ]
        if self.group.chained:
            lines += [
                "delta = tl.load(delta_ptr + at, mask=valid, other=0.0)",
                "norm = tl.load(norm_ptr + at, mask=valid, other=float('inf'))",
                "return delta, norm",
            ]
        else:
            lines += [
                "norm = tl.load(lse_ptr + at, mask=valid, other=float('inf'))",
                "less = tl.load(grad_lse_ptr + at, mask=valid, other=0.0)",
                f"rows = {self._rows_in('LEFT')}",
                "dims = gl.arange(0, BLOCK_V, gl.SliceLayout(0, LEFT))[None, :]",
                "valid_out = ((rows >= n - n_q) & (rows < n) & (lap < laps))[:, None] & (dims < VALUE_DIM)",
                "at = (b64 * heads + head) * n_q + rows - (n - n_q)",
                "return norm, less, tl.load(out_ptr + at[:, None] * VALUE_DIM + dims, mask=valid_out, other=0.0)",
            ]
        return f"@gluon.jit\ndef {self.name}_rows(\n    lap, laps, {typed}\n):\n" + indent("\n".join(lines), "    ")

    def _taken(self) -> list[str]:
        """Gradients in registers, delta and norm of each row; the first pass over all rows leaves both.

        Who has taken these gradients is done with the rows before, queries and all.
        """
        lines = [
            "mbarrier.wait(rows_full.index(0), lap & 1)",
            "fence_async_shared()",
            "query = q_s.index(lap % 2)",
            "grad = g_s.index(0).load(LEFT)",
            "mbarrier.arrive(g_empty.index(0))",
        ]
        if self.group.chained:
            return lines
        lines += [
            "delta = gl.convert_layout(tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1), LINE) - less",
            "norm = tl.where(norm == float('-inf'), float('inf'), norm * 1.4426950408889634)",
        ]
        if not self.group.share:
            lines += [
                f"rows = {self._rows_in('SCORES')}",
                "valid_row = (rows >= n - n_q) & (rows < n)",
                "at = (b64 * heads + head) * n_q + rows - (n - n_q)",
                "tl.store(delta_ptr + at, delta, mask=valid_row)",
                "tl.store(norm_ptr + at, norm, mask=valid_row)",
            ]
        return lines

    def _begun(self) -> list[str]:
        """The sums before the first step: what other passes and shares have left."""
        lines = ["dq = gl.zeros([64, BLOCK_D], gl.float32, OUT)"]
        if self.group.chained:
            left = self._left_by_passes("tl.load(prior_ptr + at, mask=inside, other=0.0)", "OUT", "HEAD_DIM")
            lines += [*self._own(self._sums), f"dq = {left}"]
        if self.shares:
            lines += [*self._own("OUT"), "lanes = gl.arange(0, 64, gl.SliceLayout(1, OUT))"]
        for i in range(len(self.shares)):
            lines += [
                *self._shared_places(i),
                f"at = ((b64 * heads + head) * share_{i}_rows + shared)[:, None] * HEAD_DIM + dims",
                f"dq += tl.load(share_{i}_ptr + at, mask=held[:, None] & inside, other=0.0)",
            ]
        return [*lines, f"rows = {self._rows_in('SCORES')}"]

    def _own(self, layout: str) -> list[str]:
        """Where the sums of these rows are in memory."""
        dims = f"dims = gl.arange(0, BLOCK_D, gl.SliceLayout(0, {layout}))[None, :]"
        if self.group.share:
            return [
                f"lanes = gl.arange(0, 64, gl.SliceLayout(1, {layout}))",
                f"rows = {self._left_at('head', 'heads')}",
                dims,
                "at = rows[:, None] * HEAD_DIM + dims",
                "inside = (rows >= 0)[:, None] & (dims < HEAD_DIM)",
            ]
        return [
            f"rows = {self._rows_in(layout)}",
            dims,
            "at = ((b64 * heads + head) * n_q + rows - (n - n_q))[:, None] * HEAD_DIM + dims",
            "inside = ((rows >= n - n_q) & (rows < n))[:, None] & (dims < HEAD_DIM)",
        ]

    def _results(self) -> list[str]:
        """Results go through shared memory, so that threads store 16 bytes; sums for other passes as they are."""
        if self.group.share:
            lines = self._own("OUT")
        elif not self.group.last:
            turned = ["dq = in_fours(dq, SUMS, HEAD_DIM)"] if self.in_order else []
            lines = [*turned, *self._own(self._sums)]
        else:
            lines = ["dq = through(q_s.index(lap % 2), dq * scale, WIDE)", *self._own("WIDE")]
        return [*lines, "tl.store(dq_ptr + at, dq, mask=inside)"]

    @property
    def _sums(self) -> str:
        """The layout of what passes leave one another."""
        return "SUMS" if self.in_order else "OUT"

    def _rows_in(self, layout: str, slot: str = "0") -> str:
        return super()._rows_in(layout, slot)

    def _segment(self, segment: Segment) -> list[str]:
        loops = []
        if segment.masked != "0":
            loops += ["for t in range(begin, tl.minimum(masked, end)):", *self._turn(segment, masked=True)]
        if segment.masked != segment.total:
            loops += ["for t in range(tl.maximum(masked, begin), end):", *self._turn(segment, masked=False)]
        first = "scores = begin_row_scores(query, k_s, k_full, step, begin < end, zero, COLUMNS, BLOCK_D)"
        return [*self._turns(segment), first, *loops, "scores = warpgroup_mma_wait(0, deps=[scores])"]

    def _turn(self, segment: Segment, masked: bool) -> list[str]:
        weights = ["p = gl.exp2(scores * factor - norm[:, None])"]
        if masked:
            columns, held = self._columns_held(segment, self._index)
            weights = [
                *segment.tile,
                *columns,
                f"p = gl.where({self._inside(segment.mask)}{held}, scores * factor - norm[:, None], float('-inf'))",
                "p = gl.exp2(p)",
            ]
        lines = [
            "scores, slopes = begin_row_slopes(grad, v_s, v_full, scores, step, zero, COLUMNS, BLOCK_V)",
            *weights,
            "scores, dq = fold_row(query, p, slopes, delta, dq, k_s, k_full, k_empty, v_empty, step, t + 1 < end, zero,",
            "    COLUMNS, BLOCK_D, SLOPES)",
            "step += 1",
        ]
        return ["    " + line for line in lines]
