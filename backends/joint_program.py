"""All gradients in one kernel, as Gluon source for Hopper: tiles of keys walk tiles of queries, and add to all three.

It computes each score once, where `Queries` and `Keys` compute it twice. What that saves must outweigh what adding up dQ in
memory costs, so a plan has it only for rows that are long (`patternc.lower.phases.with_joint`).
"""

from __future__ import annotations

from dataclasses import replace

from patternc.lower.plan import HeadPlan, Tile

from .segments import BySegment, Segment
from .triton_program import Keys, Program, Queries


class Norms(Queries):
    """What `Queries` leaves for other passes where no keys are walked: delta, the log-sum-exp, and sums that are zero."""

    kind = "norms"


class Joint(BySegment, Keys):
    """The gradients of k and v of a tile of keys, and what it adds to those of q."""

    kind = "joint"
    lists = "joint_lists"
    tile = "JOINT_ROWS", "JOINT_COLUMNS"
    pointers = ("q_view", "g_view", "k_view", "v_view", "dq_view", "norm_ptr", "delta_ptr", "dk_ptr", "dv_ptr")
    strides = ()
    constants = Program.constants
    options = "specialised(rows)"
    described = "shared_view"
    shared = ("k_s", "v_s", "q_s", "g_s", "slope_s", "dq_s", "norm_s", "delta_s", "kept", "full", "done")

    def __init__(self, index: int, group: HeadPlan, tile: Tile, shares: tuple[HeadPlan, ...], source: int):
        super().__init__(index, group, tile, shares, source)
        self.start = Norms(index, replace(group, atoms=(), phases=(), last=False), tile, (), source)

    def source(self) -> str:
        segments = [segment for i, phase in enumerate(self.group.phases) for segment in self._segments(i, phase)]
        memory = [
            "ELEMENT: tl.constexpr = dk_ptr.dtype.element_ty",
            "LINE: tl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])",
            *(
                f"{t}_s = gl.allocate_shared_memory(ELEMENT, [2, 1, 1, 1, 64, {block}], {t}_view.layout)"
                for t, block in (("k", "BLOCK_D"), ("v", "BLOCK_V"), ("q", "BLOCK_D"), ("g", "BLOCK_V"))
            ),
            "slope_s = gl.allocate_shared_memory(ELEMENT, [4, 64, 64], rows_layout(64, 64, ELEMENT))",
            "dq_s = gl.allocate_shared_memory(tl.float32, [2, 1, 1, 1, 64, BLOCK_D // 2], dq_view.layout)",
            "norm_s = gl.allocate_shared_memory(tl.float32, [2, 64], LINE)",
            "delta_s = gl.allocate_shared_memory(tl.float32, [2, 64], LINE)",
            "kept, full, done = barriers(1, 1), barriers(2, 2), barriers(2, 2)",
        ]
        return self._warpgroups(self._copies(segments), self._consumer(segments), memory, [240, 24])

    def _members(self, inner: list[str]) -> list[str]:
        """The steps for the query heads that share the key head."""
        return ["for member in range(0, sharing):", *("    " + line for line in ["head = kv * sharing + member", *inner])]

    def _copies(self, segments: list[Segment]) -> list[str]:
        steps = ["at_base = (b64 * heads + head) * n_q", "norm_at, delta_at = norm_ptr + at_base, delta_ptr + at_base"]
        for segment in segments:
            steps += [
                *self._turns(segment),
                "for t in range(begin, end):",
                *("    " + line for line in segment.tile),
                "    first = (J * COLUMNS).to(tl.int32)",
                "    copy_queries(q_view, g_view, batch, head, first, n, norm_at, delta_at, shared, step, BLOCK_D, BLOCK_V)",
                "    step += 1",
            ]
        return [
            *self._place(),
            "kv = slot",
            "shared = q_s, g_s, norm_s, delta_s, full, done",
            "keep_keys(k_view, v_view, batch, kv, first_row.to(tl.int32), k_s, v_s, kept, BLOCK_D, BLOCK_V)",
            "step = 0",
            *self._members(steps),
        ]

    def _consumer(self, segments: list[Segment]) -> list[str]:
        first = "tile * ROWS + SLOT * 64 + gl.arange(0, 64, gl.SliceLayout(1, {}))"
        finish = "finish_before(step, before, dq_view, batch, head, shared, SLOT, BLOCK_D, HALVES)"
        steps = [line for name, atom in self.atoms for line in self._atom_setup(name, atom)]
        for segment in segments:
            steps += self._segment(segment)
        return [
            "SCORES: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])",
            "HALVES: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D // 2, 16])",
            "OF_KEYS: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])",
            "OF_VALUES: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_V, 16])",
            "LINE: tl.constexpr = gl.SliceLayout(0, SCORES)",
            "KEYS: tl.constexpr = gl.DotOperandLayout(0, OF_KEYS, 2)",
            "VALUES: tl.constexpr = gl.DotOperandLayout(0, OF_VALUES, 2)",
            "factor = scale * 1.4426950408889634",
            "zero = gl.zeros([64, 64], gl.float32, SCORES)",
            *self._place(),
            "kv = slot",
            f"rows = {first.format('SCORES')}",
            f"k = rows[:, None]{'.to(tl.int64)' if self.wide else ''}",
            "dk = gl.zeros([64, BLOCK_D], gl.float32, OF_KEYS)",
            "dv = gl.zeros([64, BLOCK_V], gl.float32, OF_VALUES)",
            "shared = k_s, q_s, g_s, slope_s, dq_s, full, done",
            "step = 0",
            "mbarrier.wait(kept.index(0), 0)",
            *self._members(["before = -1", *steps, finish]),
            "tma.store_wait(0)",
            *self._stored("dk", "OF_KEYS", "BLOCK_D", "HEAD_DIM", first),
            *self._stored("dv", "OF_VALUES", "BLOCK_V", "VALUE_DIM", first),
        ]

    def _segment(self, segment: Segment) -> list[str]:
        loops = ["scores = begin_scores(k_s, q_s, full, step, begin < end, zero, SLOT, BLOCK_D)"]
        if segment.masked != segment.total:
            # What full tiles say holds of keys below n: those beyond have weights too, of scores that are 0.
            loops.append("masked = tl.where(first_row + ROWS > n, end, tl.minimum(masked, end))")
        loops += ["for t in range(begin, masked):", *("    " + line for line in self._turn(segment, masked=True))]
        if segment.masked != segment.total:
            loops += ["for t in range(masked, end):", *("    " + line for line in self._turn(segment, masked=False))]
        return [*self._turns(segment), *loops, "scores = warpgroup_mma_wait(0, deps=[scores])"]

    def _turn(self, segment: Segment, masked: bool) -> list[str]:
        weights = ["p = gl.exp2(scores * factor - norm[None, :])"]
        if masked:
            held = " & ".join([f"({self._mask(segment.mask)})", *segment.guards])
            weights = [
                f"q = (first + gl.arange(0, COLUMNS, LINE))[None, :]{'.to(tl.int64)' if self.wide else ''}",
                "safe_q, safe_k = tl.minimum(q, n - 1), tl.minimum(k, n - 1)",
                f"p = gl.exp2(gl.where((k < n) & {held}, scores * factor - norm[None, :], float('-inf')))",
            ]
        return [
            *(segment.tile if masked else segment.free),
            "first = (J * COLUMNS).to(tl.int32)",
            "scores, slopes = begin_slopes(v_s, g_s, delta_s, scores, step, zero, SLOT, BLOCK_V, SCORES)",
            "norm = norm_s.index(step % 2).load(LINE)",
            *weights,
            "scores, dk, dv = fold_gradients(",
            "    p, slopes, dk, dv, step, t + 1 < end, before, dq_view, batch, head, shared,",
            "    SLOT, BLOCK_D, BLOCK_V, SCORES, KEYS, VALUES, HALVES,",
            ")",
            "step, before = step + 1, first",
        ]

    def _stored(self, name: str, layout: str, block: str, dim: str, first: str) -> list[str]:
        factor = " * scale" if name == "dk" else ""
        return [
            f"rows = {first.format(layout)}",
            f"dims = gl.arange(0, {block}, gl.SliceLayout(0, {layout}))[None, :]",
            f"at = ((b64 * run_heads + kv) * n + rows)[:, None] * {dim} + dims",
            f"inside = (rows < n)[:, None] & (dims < {dim})",
            f"tl.store({name}_ptr + at, ({name}{factor}).to({name}_ptr.dtype.element_ty), mask=inside)",
        ]
