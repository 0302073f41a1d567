"""The gradient of q as Gluon source for Hopper: as in `gluon_program`, one warpgroup copies, the others multiply.

A consumer issues the products with the keys and the values of a tile before the product of dS with the keys of the tile before.
The first pass over some rows computes delta from tiles of the output and of its gradient, which are copied with the queries.
"""

from __future__ import annotations

from .gluon_program import WalksKeys
from .segments import Segment
from .triton_program import Queries

_PRODUCTS = (
    "mbarrier.wait(k_full.index(step % STAGES), step // STAGES & 1)",
    "keys = tile_of(k_s, step, COLUMNS, BLOCK_D, STAGES)",
    "scores = warpgroup_mma(query, keys.permute((1, 0)), zero, use_acc=False, is_async=True)",
    "mbarrier.wait(v_full.index(step % STAGES), step // STAGES & 1)",
    "values = tile_of(v_s, step, COLUMNS, BLOCK_V, STAGES)",
    "slopes = warpgroup_mma(grad, values.permute((1, 0)), zero, use_acc=False, is_async=True)",
)
"""The products with the keys and with the values of this step, begun as soon as they are there."""

_LEFT = "mbarrier.arrive(v_empty.index(step % STAGES))"

_ADDED = "acc = warpgroup_mma(ds, tile_of(k_s, step - 1, COLUMNS, BLOCK_D, STAGES), acc, is_async=True)"
"""The product of dS with the keys of the step before, begun."""

_DRAINED = ("acc = warpgroup_mma_wait(0, deps=[acc])", "mbarrier.arrive(k_empty.index((step - 1) % STAGES))")
"""The end of that product."""

_TURNED = ("ds = gl.convert_layout(slopes.to(query.dtype), WEIGHTS)", "step += 1")


class SpecialisedQueries(WalksKeys, Queries):
    """`Queries` with a warpgroup of its own for copies."""

    constants = (*Queries.constants, "PLACES", "STAGES")
    tables = "row_table"

    @property
    def copied_rows(self) -> tuple[tuple[str, str, str, str], ...]:  # type: ignore[override]
        rows = (("q", "q_ptr", "BLOCK_D", "HEAD_DIM"), ("g", "grad_ptr", "BLOCK_V", "VALUE_DIM"))
        return rows if self.group.chained else (*rows, ("o", "out_ptr", "BLOCK_V", "VALUE_DIM"))

    def _consumer(self, segments: list[Segment]) -> list[str]:
        constants = [
            "SCORES: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])",
            "OUT: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_D, 16])",
            "WEIGHTS: tl.constexpr = gl.DotOperandLayout(0, OUT, 2)",
            *self._wide(),
            "factor = scale * 1.4426950408889634",
            "zero = gl.zeros([64, COLUMNS], gl.float32, SCORES)",
        ]
        body = [
            *self._scalars(),
            *self._state(),
            *(line for i, segment in enumerate(segments) for line in self._segment(i, segment)),
            *self._result(),
        ]
        return [*constants, *self._laps(body)]

    def _state(self) -> list[str]:
        """Delta, the log-sum-exp in base 2, the sums so far, and what masks need."""
        waited = ["mbarrier.wait(q_full.index(lap % PLACES), lap // PLACES & 1)", "fence_async_shared()"]
        if self.group.chained:
            lines = [
                *self._rows_of("gl.SliceLayout(1, SCORES)"),
                "delta = tl.load(delta_ptr + at, mask=valid_row, other=0.0)",
                "norm = tl.load(norm_ptr + at, mask=valid_row, other=float('inf'))",
                *waited,
            ]
        else:
            lines = [
                *self._rows_of("gl.SliceLayout(1, G_WIDE)"),
                "norm = tl.load(lse_ptr + at, mask=valid_row, other=float('-inf'))",
                "norm = tl.where(norm == float('-inf'), float('inf'), norm * 1.4426950408889634)",
                "slope = tl.load(grad_lse_ptr + at, mask=valid_row, other=0.0)",
                *waited,
                self._own("grad", "g_s"),
                self._own("out", "o_s"),
                "delta = tl.sum(out.load(G_WIDE).to(tl.float32) * grad.load(G_WIDE).to(tl.float32), 1) - slope",
            ]
            if not self.group.share:
                lines += ["tl.store(delta_ptr + at, delta, mask=valid_row)", "tl.store(norm_ptr + at, norm, mask=valid_row)"]
            lines += [f"{name} = gl.convert_layout({name}, gl.SliceLayout(1, SCORES))" for name in ("delta", "norm")]
        lines += [
            *self._rows_of("gl.SliceLayout(1, OUT)"),
            "dims = gl.arange(0, BLOCK_D, gl.SliceLayout(0, OUT))",
            "valid_q = valid_row[:, None] & (dims < HEAD_DIM)[None, :]",
        ]
        if self.group.chained:
            lines.append("acc = tl.load(prior_ptr + at[:, None] * HEAD_DIM + dims[None, :], mask=valid_q, other=0.0)")
        else:
            lines.append("acc = gl.zeros([64, BLOCK_D], gl.float32, OUT)")
        return [
            *lines,
            *self._taken_up(),
            f"rows = {self._rows_in('gl.SliceLayout(1, SCORES)')}",
            f"q = rows[:, None]{'.to(tl.int64)' if self.wide else ''}",
            *(line for name, atom in self.atoms for line in self._atom_setup(name, atom)),
        ]

    def _segment(self, i: int, segment: Segment) -> list[str]:
        keys, held = self._held(segment)
        mask = [*keys, f"p = tl.exp2(tl.where({held}, scores * factor - norm[:, None], float('-inf')))"]
        plain = ["p = tl.exp2(scores * factor - norm[:, None])"]
        rest = "slopes = p * (slopes - delta[:, None])"
        first = [
            self._own("query", "q_s", i),
            self._own("grad", "g_s", i),
            *_PRODUCTS,
            "scores, slopes = warpgroup_mma_wait(0, deps=[scores, slopes])",
            *(_LEFT, *mask, rest, *_TURNED),
        ]
        begun = [*_PRODUCTS, _ADDED, "scores, slopes = warpgroup_mma_wait(1, deps=[scores, slopes])", _LEFT]
        masked, free = ([*begun, *weights, rest, *_DRAINED, *_TURNED] for weights in (mask, plain))
        return self._walk_tiles(segment, first, masked, free, [_ADDED, *_DRAINED])

    def _result(self) -> list[str]:
        """The sums."""
        left = "mbarrier.arrive(q_empty.index(lap % PLACES))"
        if self.group.share or not self.group.last:
            straight = [*self._rows_of("gl.SliceLayout(1, OUT)"), "dims = gl.arange(0, BLOCK_D, gl.SliceLayout(0, OUT))"]
            return [left, *straight, *self._finish()]
        return [
            self._own("query", "q_s"),
            *self._through_rows("(acc * scale)", "HEAD_DIM", "Q_WIDE"),
            left,
            "tl.store(dq_ptr + at[:, None] * HEAD_DIM + dims, result, mask=inside)",
        ]
