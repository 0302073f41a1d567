"""All gradients in one kernel, as Gluon source for Hopper: tiles of keys walk tiles of queries, and add to all three.

It computes each score once, where `Queries` and `Keys` compute it twice. What that saves must outweigh what adding up dQ in
memory costs, so a plan has it only for rows that are long (`patternc.lower.phases.with_joint`).
"""

from __future__ import annotations

from dataclasses import replace

from patternc.lower.plan import HeadPlan, Tile

from .keys_program import ByKey
from .triton_program import Queries

_PART = "PART: tl.constexpr = BLOCK_D * COLUMNS // 128"
"""The dims of dQ of 64 queries that a consumer adds to: half of the tile."""


class Norms(Queries):
    """What `Queries` leaves for other passes where no keys are walked: delta, the log-sum-exp, and sums that are zero."""

    kind = "norms"


class Joint(ByKey):
    """The gradients of k and v of a tile of keys, and what it adds to those of q."""

    kind = "joint"
    lists = "joint_lists"
    tile = "JOINT_ROWS", "JOINT_COLUMNS"
    shared = (*ByKey.shared, "slope_s", "dq_s")
    pointers = (*ByKey.pointers, "dq_view")
    layouts = (
        *ByKey.layouts,
        _PART,
        "PARTS: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PART, 16])",
    )
    _around = (
        ("scores = begin_scores(k_s, q_s, full, step, begin < end, zero, SLOT, BLOCK_D)",),
        ("scores = warpgroup_mma_wait(0, deps=[scores])",),
    )
    _products = "scores, slopes, norm = begin_slopes(v_s, g_s, norm_s, delta_s, scores, step, zero, SLOT, BLOCK_V, SCORES)"
    # What full tiles say holds of keys below n: those beyond have weights too, of scores that are 0.
    _masked_end, _also = "tl.where(first_row + ROWS > n, end, tl.minimum(masked, end))", "(k < n) & "

    def __init__(self, index: int, group: HeadPlan, tile: Tile, shares: tuple[HeadPlan, ...], source: int):
        super().__init__(index, group, tile, shares, source)
        self.start = Norms(index, replace(group, atoms=(), phases=(), last=False), tile, (), source)

    def _memory(self) -> list[str]:
        return [
            *super()._memory(),
            _PART,
            "slope_s = gl.allocate_shared_memory(ELEMENT, [4, 64, COLUMNS], rows_layout(64, COLUMNS, ELEMENT))",
            "dq_s = gl.allocate_shared_memory(tl.float32, [2, 1, 1, 1, 64, PART], dq_view.layout)",
        ]

    def _walked(self, steps: list[str]) -> list[str]:
        finish = "finish_before(step, before, dq_view, batch, head, shared, SLOT, COLUMNS, BLOCK_D, PARTS)"
        every = self._each_head(["before = -1", *steps, finish])
        return ["shared = k_s, q_s, g_s, slope_s, dq_s, full, done", *every, "tma.store_wait(0)"]

    def _folded(self) -> list[str]:
        return [
            "scores, dk, dv = fold_gradients(",
            "    p, slopes, dk, dv, step, t + 1 < end, before, dq_view, batch, head, shared,",
            "    SLOT, COLUMNS, BLOCK_D, BLOCK_V, SCORES, KEYS, VALUES, PARTS,",
            ")",
            "step, before = step + 1, first",
        ]
