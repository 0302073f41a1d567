"""The forward pass as Gluon source for Hopper: one warpgroup copies keys and values, the others multiply.

The loops of the plan are printed twice, from the same bounds: once for the warpgroup that fills two rings of tiles in shared
memory through the copy engine, once for the consumers, of 64 rows each, that empty them. A consumer issues the product
with the keys of a tile before the product with the values of the tile before, and runs the softmax under it.
"""

from __future__ import annotations

from patternc.relation import View

from .picked_program import PickedForward
from .printer import triton
from .segments import ByLap, Segment, residue_of
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

_KEYS = (
    "mbarrier.wait(k_full.index(step % STAGES), step // STAGES & 1)",
    "keys = tile_of(k_s, step, COLUMNS, BLOCK_D, STAGES)",
    "scores = warpgroup_mma(query, keys.permute((1, 0)), zero, use_acc=False, is_async=True)",
)
"""The product with the keys of this step, begun as soon as they are there."""

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


class WalksKeys(ByLap):
    """Rows are queries: one warpgroup copies their own tiles, and tiles of keys and of values into two rings."""

    copied_rows: tuple[tuple[str, str, str, str], ...] = (("q", "q_ptr", "BLOCK_D", "HEAD_DIM"),)
    """The tiles of rows: letter, pointer, and dims, padded and as they are."""

    def source(self) -> str:
        values, _ = self._signature()
        segments = [segment for i, phase in enumerate(self.group.phases) for segment in self._segments(i, phase)]
        rows = "ELEMENT, [PLACES * ROWS // 64, 64, {0}], rows_layout(64, {0}, ELEMENT)"
        memory = [
            "ELEMENT: tl.constexpr = q_ptr.dtype.element_ty",
            *(f"{t}_s = gl.allocate_shared_memory({rows.format(block)})" for t, _, block, _ in self.copied_rows),
            "k_s = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, 1, COLUMNS, BLOCK_D], k_view.layout)",
            "v_s = gl.allocate_shared_memory(ELEMENT, [STAGES, 1, 1, 1, COLUMNS, BLOCK_V], v_view.layout)",
            *(f"{name} = barriers({'PLACES' if name[0] == 'q' else 'STAGES'}, {count})" for name, count in _BARRIERS.items()),
        ]
        registers = [232] * (self.consumers - 1) + [40]
        plain = [name for name in values if not name.endswith("_view")]
        return self._warpgroups(self._copies(segments), self._consumer(segments), memory, registers, plain)

    @property
    def shared(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*(f"{t}_s" for t, *_ in self.copied_rows), "k_s", "v_s", *_BARRIERS)

    @property
    def own_constants(self) -> str:  # type: ignore[override]
        dims = {"BLOCK_D": "blocks[2]", "BLOCK_V": "blocks[3]"}
        return (
            f", *places({' + '.join(dims[block] for _, _, block, _ in self.copied_rows)}, blocks[2] + blocks[3], rows, columns)"
        )

    def _consumer(self, segments: list[Segment]) -> list[str]:
        raise NotImplementedError

    def _scalars(self) -> list[str]:
        return [*self._place(), "head = slot // RUN * PERIOD + FIRST + slot % RUN", "kv = head // sharing"]

    def _wide(self) -> list[str]:
        """Layouts of rows as they lie in memory, 16 bytes a thread."""
        layout = "gl.BlockedLayout([1, 8], [256 // {0}, {0} // 8], [4, 1], [1, 0])"
        return [f"{t.upper()}_WIDE: tl.constexpr = {layout.format(block)}" for t, _, block, _ in self.copied_rows]

    def _copies(self, segments: list[Segment]) -> list[str]:
        body = [*self._scalars(), "mbarrier.wait(q_empty.index(lap % PLACES), (lap // PLACES & 1) ^ 1)"]
        for t, pointer, block, dim in self.copied_rows:
            base, steps = f"{pointer} + b64 * stride_{t}b + head.to(tl.int64) * stride_{t}h", (f"stride_{t}n", f"stride_{t}d")
            if t == "o":
                base, steps = f"{pointer} + (b64 * heads + head) * n_q * {dim}", (dim, "1")
            body += [
                f"{t}_base = {base}",
                f"dims = gl.arange(0, {block}, gl.SliceLayout(0, {t.upper()}_WIDE))[None, :]",
                "for slot in gl.static_range(ROWS // 64):",
                f"    rows = {self._rows_in(f'gl.SliceLayout(1, {t.upper()}_WIDE)', 'slot')}",
                f"    {t}_at = {t}_base + (rows - (n - n_q)).to(tl.int64)[:, None] * {steps[0]} + dims * {steps[1]}",
                f"    inside = ((rows >= n - n_q) & (rows < n))[:, None] & (dims < {dim})",
                f"    into = {t}_s.index(lap % PLACES * (ROWS // 64) + slot)",
                f"    async_copy.async_copy_global_to_shared(into, {t}_at, mask=inside)",
            ]
        body.append("async_copy.mbarrier_arrive(q_full.index(lap % PLACES), increment_count=False)")
        for segment in segments:
            k, v = self._source(segment.view)
            at = f"batch, kv, {residue_of(segment.view)}, (J * COLUMNS).to(tl.int32)"
            body += [
                *self._turns(segment),
                "for t in range(begin, end):",
                *("    " + line for line in segment.tile),
                f"    copy_tile({k}, {at}, k_s, k_full, k_empty, step, COLUMNS * BLOCK_D * 2, STAGES)",
                f"    copy_tile({v}, {at}, v_s, v_full, v_empty, step, COLUMNS * BLOCK_V * 2, STAGES)",
                "    step += 1",
            ]
        return [*self._wide(), *self._laps(body)]

    def _source(self, view: View) -> tuple[str, str]:
        if view in self.packed:
            i = self.packed.index(view)
            return f"k{i}_view", f"v{i}_view"
        return "k_view", "v_view"

    def _rows_in(self, layout: str, slot: str = "SLOT") -> str:
        return self._positions(f"tile * ROWS + {slot} * 64 + gl.arange(0, 64, {layout})")

    def _rows_of(self, layout: str) -> list[str]:
        """The rows in a layout, and where they are in results."""
        return [
            f"lanes = SLOT * 64 + gl.arange(0, 64, {layout})",
            f"rows = {self._rows_in(layout)}",
            "valid_row = (rows >= n - n_q) & (rows < n)",
            "at = (b64 * heads + head) * n_q + rows - (n - n_q)",
        ]

    def _own(self, name: str, tiles: str, i: int = 0) -> str:
        """A tile of rows, at an address that each segment computes for itself.

        Of two branches that compute the same address, the assembler of CUDA 12.8 may compute it in the first alone, and
        read an unset register where only the second is taken. So the addresses differ, for heads < 0, which never is.
        """
        apart = f" + tl.where(heads < {-i}, 1, 0)" if i else ""
        return f"{name} = {tiles}.index(lap % PLACES * (ROWS // 64) + SLOT{apart})"

    def _walk_tiles(self, segment: Segment, first: list[str], masked: list[str], free: list[str], last: list[str]) -> list[str]:
        """``first`` for the first tile, masked or not; ``masked`` and ``free`` for the others; ``last`` at the end."""
        loops = []
        if segment.masked != "0":
            body = [*segment.tile, *masked]
            loops += ["for t in range(begin + 1, tl.minimum(masked, end)):", *("    " + line for line in body)]
        if segment.masked != segment.total:
            loops += ["for t in range(tl.maximum(begin + 1, masked), end):", *("    " + line for line in free)]
        begun = ["t = begin", *segment.tile, *first]
        return [*self._turns(segment), "if begin < end:", *("    " + line for line in [*begun, *loops, *last])]

    def _held(self, segment: Segment) -> tuple[list[str], str]:
        """The keys of a tile, and which pairs the pattern holds."""
        wide = ".to(tl.int64)" if self.wide else ""
        columns = triton(segment.view.key, {"u": "(J * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, SCORES)))"})
        held = " & ".join([f"({self._mask(segment.mask)})", *segment.guards])
        lines = [f"k = ({columns})[None, :]{wide}", "safe_q, safe_k = tl.minimum(q, n - 1), tl.minimum(k, n - 1)"]
        return lines, f"{self._inside(segment.mask)}{held}"

    def _through_rows(self, name: str, dim: str, wide: str) -> list[str]:
        """16-bit results go through the place of the queries, so that threads store 16 bytes."""
        return [
            "meet()",
            f"query.store({name}.to(query.dtype))",
            "meet()",
            f"result = query.load({wide})",
            f"rows = {self._rows_in(f'gl.SliceLayout(1, {wide})')}",
            f"dims = gl.arange(0, BLOCK_D, gl.SliceLayout(0, {wide}))[None, :]",
            "at = (b64 * heads + head) * n_q + rows - (n - n_q)",
            f"inside = ((rows >= n - n_q) & (rows < n))[:, None] & (dims < {dim})",
        ]


class Specialised(WalksKeys, Forward):
    """`Forward` with a warpgroup of its own for copies."""

    constants = (*Forward.constants, "PLACES", "STAGES")
    tables = "row_table"

    # Consumers.

    def _consumer(self, segments: list[Segment]) -> list[str]:
        constants = [
            "SCORES: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])",
            "OUT: tl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_V, 16])",
            "WEIGHTS: tl.constexpr = gl.DotOperandLayout(0, OUT, 2)",
            *self._wide(),
            "factor = scale * 1.4426950408889634",
            "zero = gl.zeros([64, COLUMNS], gl.float32, SCORES)",
        ]
        body = [
            *self._scalars(),
            "mbarrier.wait(q_full.index(lap % PLACES), lap // PLACES & 1)",
            "fence_async_shared()",
            *self._state(),
            *(line for i, segment in enumerate(segments) for line in self._segment(i, segment)),
            *self._result(),
        ]
        return [*constants, *self._laps(body)]

    def _state(self) -> list[str]:
        """The softmax so far, and what masks need."""
        lines = [
            *self._rows_of("gl.SliceLayout(1, OUT)"),
            "dims_v = gl.arange(0, BLOCK_V, gl.SliceLayout(0, OUT))",
            "valid_out = valid_row[:, None] & (dims_v < VALUE_DIM)[None, :]",
        ]
        if self.group.chained:
            lines += self._left_before()
        else:
            lines += [
                "top = gl.full([64], float('-inf'), gl.float32, gl.SliceLayout(1, OUT))",
                "total = gl.full([64], 0.0, gl.float32, gl.SliceLayout(1, OUT))",
                "acc = gl.zeros([64, BLOCK_V], gl.float32, OUT)",
            ]
        lines += self._taken_up()
        lines += [
            "top = gl.convert_layout(top, gl.SliceLayout(1, SCORES))",
            "total = gl.convert_layout(total, gl.SliceLayout(1, SCORES))",
            f"rows = {self._rows_in('gl.SliceLayout(1, SCORES)')}",
            f"q = rows[:, None]{'.to(tl.int64)' if self.wide else ''}",
            *(line for name, atom in self.atoms for line in self._atom_setup(name, atom)),
        ]
        return lines

    def _segment(self, i: int, segment: Segment) -> list[str]:
        keys, held = self._held(segment)
        mask = [*keys, f"scores = tl.where({held}, scores * factor, float('-inf'))"]
        first = [
            self._own("query", "q_s", i),
            *_KEYS,
            "scores = warpgroup_mma_wait(0, deps=[scores])",
            _LEFT,
            *mask,
            "top, safe, decay = peak_of(top, tl.max(scores, 1))",
            "p = tl.exp2(scores - safe[:, None])",
            "total = total * decay + tl.sum(p, 1)",
            "acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, OUT))[:, None]",
            "p = gl.convert_layout(p.to(query.dtype), WEIGHTS)",
            "step += 1",
        ]
        return self._walk_tiles(segment, first, self._turn(mask), self._turn([]), [*_VALUES, *_DRAINED])

    def _turn(self, mask: list[str]) -> list[str]:
        """One turn of the pipeline: with ``mask``, or for a tile that is full."""
        lines = [
            *_KEYS,
            *_VALUES,
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
            "p = gl.convert_layout(p32.to(query.dtype), WEIGHTS)",
            "acc = acc * gl.convert_layout(decay, gl.SliceLayout(1, OUT))[:, None]",
            "step += 1",
        ]

    def _result(self) -> list[str]:
        """Output and log-sum-exp."""
        lines = [
            "top = gl.convert_layout(top, gl.SliceLayout(1, OUT))",
            "total = gl.convert_layout(total, gl.SliceLayout(1, OUT))",
        ]
        if self.group.share or not self.group.last:
            return [*lines, *self._finish(), "mbarrier.arrive(q_empty.index(lap % PLACES))"]
        *most, address, store = self._finish()
        return [
            *lines,
            *most,
            "if BLOCK_D == BLOCK_V:",
            f"    {self._own('query', 'q_s')}",
            *("    " + line for line in self._through_rows("out", "VALUE_DIM", "Q_WIDE")),
            "    tl.store(out_ptr + at[:, None] * VALUE_DIM + dims, result, mask=inside)",
            "else:",
            f"    {address}",
            f"    {store}",
            "mbarrier.arrive(q_empty.index(lap % PLACES))",
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
