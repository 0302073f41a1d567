"""The forward pass as Gluon source for Hopper: one warpgroup copies keys and values, the others multiply.

The loops of the plan are printed twice, from the same bounds: once for the warpgroup that fills two rings of tiles in shared
memory through the copy engine, once for the consumers, of 64 rows each, that empty them. A consumer issues the product
with the keys of a tile before the product with the values of the tile before, and runs the softmax under it. The first product
of a row tile is begun before the results of the row tile before are stored.
"""

from __future__ import annotations

from patternc.lower.plan import HeadPlan, Tile

from .picked_program import PickedForward
from .segments import LONG, QueriesByLap, Segment, wide
from .triton_program import Forward

_BARRIERS = {
    "q_full": "128",
    "q_empty": "ROWS // 64",
    "k_full": "1",
    "k_empty": "ROWS // 64",
    "v_full": "1",
    "v_empty": "ROWS // 64",
}
"""What is waited for, with the number of arrivals: rings of places for queries, for keys and for values."""

SHORT = 4
"""Tiles of a row up to which memory is what rows wait for: results are stored first, and the next product begun then."""

_WIDE = wide("WIDE", "BLOCK_D")

_KEYS = (
    "mbarrier.wait(k_full.index(step % STAGES), step // STAGES & 1)",
    "keys = tile_of(k_s, step, COLUMNS, BLOCK_D, STAGES)",
    "scores = warpgroup_mma(query, keys.permute((1, 0)), zero, use_acc=False, is_async=True)",
)
"""The product with the keys of this step, begun as soon as they are there."""

_FIRST = "scores = first_scores({}, {}, q_s, k_s, q_full, k_full, step, zero, SLOT, ROWS, COLUMNS, BLOCK_D, PLACES, STAGES)"
"""The product of the queries of a lap with their first keys, begun."""

_OWN_TURN = "mbarrier.wait(turns.index(SLOT), (begun_pairs & 1) ^ (1 - SLOT))"
_OTHERS_TURN = ("mbarrier.arrive(turns.index(1 - SLOT))", "begun_pairs += 1")
"""Two consumers begin pairs of products in turn, so that one computes weights while those of the other run."""

_PLACE = "q_s.index(lap % PLACES * (ROWS // 64) + SLOT)"
"""Where the queries of a consumer are."""

_LEFT = "mbarrier.arrive(k_empty.index(step % STAGES))"

_VALUES = (
    "mbarrier.wait(v_full.index((step - 1) % STAGES), (step - 1) // STAGES & 1)",
    "acc = warpgroup_mma(p, tile_of(v_s, step - 1, COLUMNS, BLOCK_V, STAGES), acc, is_async=True)",
)
"""The product with the values of the step before, begun."""

_DRAINED = (
    "acc = warpgroup_mma_wait(0, deps=[acc])",
    "mbarrier.arrive(v_empty.index((step - 1) % STAGES))",
)
"""The end of that product."""

_RESCALED = (
    "p = gl.convert_layout(p32.to(q_s.dtype), WEIGHTS)",
    "acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, OUT))[:, None]",
    "step += 1",
)
"""The end of a step: weights for the next product with values, and what it adds to."""


class Specialised(QueriesByLap, Forward):
    """`Forward` with a warpgroup of its own for copies."""

    constants = (*Forward.constants, "PLACES", "STAGES")
    own_constants = ", *places(blocks, rows, columns)"
    tables = "row_table"
    registers = 232, 40

    def __init__(self, index: int, group: HeadPlan, tile: Tile, shares: tuple[HeadPlan, ...], source: int):
        super().__init__(index, group, tile, shares, source)
        self.ahead = tile.rows == 64 or (tile.columns > 64 and len(self._every()) == 1)
        """Whether the first product of a row tile is begun during the one before, for which there must be registers.

        Queries of heads wider than 128 have one place only.
        """
        self.in_turn = self.ahead and tile == Tile(128, 128) and SHORT < self.longest <= LONG
        """Whether consumers begin products in turn, which paid in rows of that length."""
        self.shared = ("q_s", "k_s", "v_s", *_BARRIERS, *(["turns"] if self.in_turn else []))

    def source(self) -> str:
        values, _ = self._signature()
        segments = self._every()
        memory = [
            "ELEMENT: tl.constexpr = q_ptr.dtype.element_ty",
            "q_s = gl.allocate_shared_memory(ELEMENT, [PLACES * ROWS // 64, 64, BLOCK_D], rows_layout(64, BLOCK_D, ELEMENT))",
            "k_s = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, 1, COLUMNS, BLOCK_D], k_view.layout)",
            "v_s = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, 1, COLUMNS, BLOCK_V], v_view.layout)",
            *(f"{name} = barriers({'PLACES' if name[0] == 'q' else 'STAGES'}, {count})" for name, count in _BARRIERS.items()),
            *(["turns = barriers(2, 1)"] if self.in_turn else []),
        ]
        plain = [name for name in values if not name.endswith("_view")]
        return self._warpgroups(self._copies(segments), self._consumer(segments), memory, plain)

    # Copies.

    def _copies(self, segments: list[Segment]) -> list[str]:
        body = [
            *self._scalars(),
            "q_base = q_ptr + b64 * stride_qb + head.to(tl.int64) * stride_qh",
            "dims = gl.arange(0, BLOCK_D, gl.SliceLayout(0, WIDE))[None, :]",
            "mbarrier.wait(q_empty.index(lap % PLACES), (lap // PLACES & 1) ^ 1)",
            "for slot in gl.static_range(ROWS // 64):",
            f"    rows = {self._rows_in('WIDE', 'slot')}",
            "    q_at = q_base + (rows - (n - n_q)).to(tl.int64)[:, None] * stride_qn + dims * stride_qd",
            "    inside = ((rows >= n - n_q) & (rows < n))[:, None] & (dims < HEAD_DIM)",
            "    async_copy.async_copy_global_to_shared(q_s.index(lap % PLACES * (ROWS // 64) + slot), q_at, mask=inside)",
            "async_copy.mbarrier_arrive(q_full.index(lap % PLACES), increment_count=False)",
        ]
        body += self._copied(segments)
        skipped = ("skip_tile(k_full, k_empty, step, STAGES)", "skip_tile(v_full, v_empty, step, STAGES)", "step += 1")
        if self.ahead:
            body = ["begun = step", *body, "if step == begun:", *("    " + line for line in skipped)]
        return [_WIDE, *self._laps(body)]

    # Consumers.

    def _consumer(self, segments: list[Segment]) -> list[str]:
        constants = [
            "SCORES: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])",
            "OUT: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_V, 16])",
            "WEIGHTS: tl.constexpr = gl.DotOperandLayout(0, OUT, 2)",
            _WIDE,
            *(["SUMS: tl.constexpr = sums_layout(BLOCK_V, VALUE_DIM, OUT)"] if self.in_order else []),
            "factor = scale * 1.4426950408889634",
            "zero = gl.zeros([64, COLUMNS], gl.float32, SCORES)",
        ]
        walked = [line for i, segment in enumerate(segments) for line in self._segment(i, segment)]
        start, laps, *rest = self._laps([*self._scalars(), *(self._overlapped(walked) if self.ahead else self._alone(walked))])
        if self.ahead:
            rest = [_FIRST.format("0", "laps > 0"), *rest, "scores = warpgroup_mma_wait(0, deps=[scores])"]
        return [*constants, *(["begun_pairs = 0"] if self.in_turn else []), start, laps, *rest]

    def _alone(self, walked: list[str]) -> list[str]:
        """A lap that nothing is begun before."""
        there = "mbarrier.wait(q_full.index(lap % PLACES), lap // PLACES & 1)"
        return [there, "fence_async_shared()", *self._state(), *walked, *self._result()]

    def _overlapped(self, walked: list[str]) -> list[str]:
        """A lap whose first product has been begun, and that begins that of the next; it has a step even without keys."""
        following, results = _FIRST.format("lap + 1", "lap + 1 < laps"), self._result()
        return [
            "scores = warpgroup_mma_wait(0, deps=[scores])",
            _LEFT,
            *self._state(),
            "begun = step",
            "p = gl.zeros([64, COLUMNS], q_s.dtype, WEIGHTS)",
            *walked,
            "if step > begun:",
            *("    " + line for line in (*_VALUES, *_DRAINED)),
            "else:",
            "    step += 1",
            f"    {_VALUES[0]}",
            f"    {_DRAINED[1]}",
            *([following, *results] if self.longest > SHORT else [*results, following]),
        ]

    def _query(self, i: int) -> str:
        """The queries, at an address that each loop computes for itself.

        Of two branches that compute the same address, the assembler of CUDA 12.8 may compute it in the first alone, and
        read an unset register where only the second is taken. So the addresses differ, for heads < 0, which never is.
        """
        return f"query = {_PLACE[:-1]} + tl.where(heads < {-i}, 1, 0))"

    def _state(self) -> list[str]:
        """The softmax so far, and what masks need."""
        lines = [
            "lanes = SLOT * 64 + gl.arange(0, 64, gl.SliceLayout(1, OUT))",
            f"rows = {self._rows_in('OUT')}",
            "valid_row = (rows >= n - n_q) & (rows < n)",
            "at = (b64 * heads + head) * n_q + rows - (n - n_q)",
            "dims_v = gl.arange(0, BLOCK_V, gl.SliceLayout(0, OUT))",
            "valid_out = valid_row[:, None] & (dims_v < VALUE_DIM)[None, :]",
        ]
        if self.group.chained:
            *softmax, acc = self._left_before()
            load = "in_pairs(tl.load(prior_ptr + own_at, mask=inside, other=0.0), OUT, VALUE_DIM)"
            lines += [*softmax, *([*self._own("SUMS"), f"acc = {load}"] if self.in_order else [acc])]
        else:
            lines += [
                "top = gl.full([64], float('-inf'), gl.float32, gl.SliceLayout(1, OUT))",
                "total = gl.full([64], 0.0, gl.float32, gl.SliceLayout(1, OUT))",
                "acc = gl.zeros([64, BLOCK_V], gl.float32, OUT)",
            ]
        lines += [
            *([] if self.ahead else self._taken_up()),
            "top = gl.convert_layout(top, gl.SliceLayout(1, SCORES))",
            "total = gl.convert_layout(total, gl.SliceLayout(1, SCORES))",
            f"rows = {self._rows_in('SCORES')}",
            f"q = rows[:, None]{'.to(tl.int64)' if self.wide else ''}",
            *(line for name, atom in self.atoms for line in self._atom_setup(name, atom)),
        ]
        return lines

    def _segment(self, i: int, segment: Segment) -> list[str]:
        columns, held = self._columns_held(segment, self._index)
        mask = [*columns, f"scores = tl.where({self._inside(segment.mask)}{held}, scores * factor, float('-inf'))"]
        first = [
            "t = begin",
            *segment.tile,
            *mask,
            "top, safe, decay = peak_of(top, tl.max(scores, 1))",
            "p = tl.exp2(scores - safe[:, None])",
            "total = total * decay + tl.sum(p, 1)",
            "acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, OUT))[:, None]",
            "p = gl.convert_layout(p.to(q_s.dtype), WEIGHTS)",
            "step += 1",
            "begin += 1",
        ]
        loops = []
        if segment.masked != "0" and not (i == 0 and segment.one_masked):
            loops.append(("for t in range(begin, tl.minimum(masked, end)):", self._turn(segment, mask)))
        if segment.masked != segment.total:
            loops.append(("for t in range(tl.maximum(begin, masked), end):", self._turn(segment, [])))
        if not self.ahead:
            begun = [self._query(i), *_KEYS, "scores = warpgroup_mma_wait(0, deps=[scores])", _LEFT]
            every = [line for head, body in loops for line in (head, *("    " + x for x in body))]
            lines = [*begun, *first, *every, *_VALUES, *_DRAINED]
            return [*self._turns(segment), "if begin < end:", *("    " + line for line in lines)]
        every = [x for j, (head, body) in enumerate(loops) for x in (self._query(2 * i + j), head, *("    " + y for y in body))]
        fresh = "(step == begun) & (begin < end)" if i else "begin < end"
        return [*self._turns(segment), f"if {fresh}:", *("    " + line for line in first), *every]

    def _turn(self, segment: Segment, mask: list[str]) -> list[str]:
        """One turn of the pipeline: with ``mask``, or for a tile that is full."""
        keys_there, *keys = _KEYS
        lines = [
            *(segment.tile if mask else []),
            keys_there,
            *([_OWN_TURN] if self.in_turn else []),
            *keys,
            *_VALUES,
            *(_OTHERS_TURN if self.in_turn else []),
            "scores = warpgroup_mma_wait(1, deps=[scores])",
            _LEFT,
        ]
        if mask:
            lines += [*mask, "top, safe, decay = peak_of(top, tl.max(scores, 1))", "p32 = tl.exp2(scores - safe[:, None])"]
        else:
            lines += [
                "top, safe, decay = peak_of(top, tl.max(scores, 1) * factor)",
                "p32 = tl.exp2(scores * factor - safe[:, None])",
            ]
        return [
            *lines,
            "total = total * decay + tl.sum(p32, 1)",
            *_DRAINED,
            *_RESCALED,
        ]

    def _result(self) -> list[str]:
        """Output and log-sum-exp: 16-bit results go through the place of the queries, so that threads store 16 bytes."""
        lines = [
            "top = gl.convert_layout(top, gl.SliceLayout(1, OUT))",
            "total = gl.convert_layout(total, gl.SliceLayout(1, OUT))",
            *([f"rows = {self._rows_in('OUT')}", *self._taken_up()] if self.shares and self.ahead else []),
        ]
        *most, address, store = self._finish()
        done = "mbarrier.arrive(q_empty.index(lap % PLACES))"
        if self.group.share or not (self.group.last or self.in_order):
            return [*lines, *most, address, store, done]
        if not self.group.last:
            left = "tl.store(out_ptr + own_at, in_fours(out, SUMS, VALUE_DIM), mask=inside)"
            return [*lines, *most, *self._own("SUMS"), left, done]
        return [
            *lines,
            *most,
            "if BLOCK_D == BLOCK_V:",
            f"    result = through({_PLACE}, out, WIDE)",
            *("    " + line for line in self._own("WIDE")),
            "    tl.store(out_ptr + own_at, result, mask=inside)",
            "else:",
            f"    {address}",
            f"    {store}",
            done,
        ]

    def _own(self, layout: str) -> list[str]:
        """Where the results of a consumer are in memory."""
        return [
            f"own = {self._rows_in(layout)}",
            f"dims = gl.arange(0, BLOCK_V, gl.SliceLayout(0, {layout}))[None, :]",
            "own_at = ((b64 * heads + head) * n_q + own - (n - n_q))[:, None] * VALUE_DIM + dims",
            "inside = ((own >= n - n_q) & (own < n))[:, None] & (dims < VALUE_DIM)",
        ]


class Latent(PickedForward):
    """`PickedForward` for keys whose first dims are the values, by the functions of `gluon_latent.py`."""

    kind = "latent"
    suits = "fits_latent(members, q, k, v, blocks)"
    constants = Forward.constants
    sizes, rows_for, options, own_constants, own_case = ("blocks", "64", "64"), "", "{'num_warps': 4}", "", ""
    launched = "n_q * -(-members // 64)", PickedForward.launched[1]

    def source(self) -> str:
        values, unspecialised = self._signature()
        typed = ", ".join(f"{c}: tl.constexpr" for c in self.constants)
        given = [
            *("q_ptr, k_ptr, out_ptr, prior_ptr, lse_ptr", *self._parameters()),
            *("stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn", "n_q, heads, sharing, scale, members"),
            *("FIRST, RUN, PERIOD, HEAD_DIM, VALUE_DIM, ROWS, COLUMNS", str(self.group.chained)),
        ]
        head = f"@gluon.jit(do_not_specialize={unspecialised!r})\ndef {self.name}(\n    {', '.join(values)},\n    {typed}\n):\n"
        return f"{head}    latent({', '.join(given)})"
