"""Kernels that walk the lists of selections, as Triton source: the rows of a tile are the query heads that share a list.

For the output and the gradient of q a program has one query, and fetches the listed keys of its key head, a tile at a time.
For the gradients of k and v it has one listed block of keys, and fetches the queries that list it, with all their heads. A
block of one key leaves most of a tile empty, so that the program of the query adds its part to them where that is allowed.
Head dims that are no powers of two come in two parts, of ``BLOCK_D`` and of ``REST``, so that little is padded.
"""

from __future__ import annotations

from patternc.lower.plan import HeadPlan, Picked
from patternc.scalar import TRUE

from .triton_program import Forward, Keys, Program, Queries

PICKED_SIZES = "own_blocks", "own_rows", "own_columns"
"""The host's names of their sizes."""

_SCORES = "scores = tl.dot({a}, {b}.T, input_precision='ieee')"
_MORE = "    scores = tl.dot({a}_rest, {b}_rest.T, scores, input_precision='ieee')"


def _of_pass(group: HeadPlan) -> str:
    """That a head is one of the pass."""
    if len(group.heads) == group.period:
        return ""
    return " & (head % PERIOD >= FIRST) & (head % PERIOD < FIRST + RUN)"


class _ByPicked(Program):
    """What the kernels have in common that have one query."""

    own_lengths = ("members",)
    constants = (*Program.constants, "REST", "SAME")
    sizes, options, own_constants, own_case = PICKED_SIZES, "own_options", ", rest, same", "members, same"
    launched = "n_q * -(-members // own_rows)", "batch * (heads // members)"

    def _tile(self) -> list[str]:
        return [
            "parts = (members + ROWS - 1) // ROWS",
            "row = n_q - 1 - tl.program_id(0) // parts",
            "batch = tl.program_id(1) // (heads // members)",
            "set_of = tl.program_id(1) % (heads // members)",
            "b64 = batch.to(tl.int64)",
            "lanes = tl.program_id(0) % parts * ROWS + tl.arange(0, ROWS)",
            "head = set_of * members + lanes",
            "rows = n - n_q + row + lanes * 0",
            f"q = rows[:, None]{'.to(tl.int64)' if self.wide else ''}",
        ]

    def _head(self) -> list[str]:
        return [
            f"valid_row = (lanes < members){_of_pass(self.group)}",
            "dims = tl.arange(0, BLOCK_D)",
            "rest = BLOCK_D + tl.arange(0, REST if REST else 16)",
            "dims_v = tl.arange(0, BLOCK_V)",
            "kv = set_of * members // sharing",
            "k_base = k_ptr + b64 * stride_kb + kv.to(tl.int64) * stride_kh",
            "v_base = v_ptr + b64 * stride_vb + kv.to(tl.int64) * stride_vh",
            "q_at = q_ptr + b64 * stride_qb + head.to(tl.int64) * stride_qh + row.to(tl.int64) * stride_qn",
            "valid_q = valid_row[:, None] & (dims < HEAD_DIM)[None, :]",
            "valid_rest = valid_row[:, None] & (rest < HEAD_DIM)[None, :]",
            "query = tl.load(q_at[:, None] + dims[None, :] * stride_qd, mask=valid_q, other=0.0)",
            "query_rest = tl.load(q_at[:, None] + rest[None, :] * stride_qd, mask=valid_rest & (REST > 0), other=0.0)",
            "at = (b64 * heads + head) * n_q + row",
            "valid_out = valid_row[:, None] & (dims_v < VALUE_DIM)[None, :]",
            *(line for name, atom in self.atoms for line in self._atom_setup(name, atom)),
        ]

    def _key_parameters(self, i: int) -> list[str]:
        return [f"keys_{i}", *(f"keys_{i}_{axis}" for axis in "bhq"), f"count_{i}", f"count_{i}_b", f"count_{i}_h"]

    def _body(self) -> list[str]:
        lines = []
        for i, phase in enumerate(self.group.phases):
            assert isinstance(phase, Picked)
            lines += [
                f"keys_at = keys_{i} + b64 * keys_{i}_b + set_of.to(tl.int64) * keys_{i}_h + row.to(tl.int64) * keys_{i}_q",
                f"listed = tl.load(count_{i} + b64 * count_{i}_b + set_of.to(tl.int64) * count_{i}_h + row) * {phase.unit}",
                "for t in range(0, (listed + COLUMNS - 1) // COLUMNS):",
                "    place = t * COLUMNS + tl.arange(0, COLUMNS)",
                f"    block = tl.load(keys_at + place // {phase.unit}, mask=place < listed, other=-1)",
                f"    columns = block * {phase.unit} + place % {phase.unit}",
                "    keep = (block >= 0) & (columns < n)",
                "    k_at = k_base + tl.maximum(columns, 0).to(tl.int64)[:, None] * stride_kn",
                "    kept_key = keep[:, None] & (dims < HEAD_DIM)[None, :]",
                "    key = tl.load(k_at + dims[None, :] * stride_kd, mask=kept_key, other=0.0)",
                f"    {_SCORES.format(a='query', b='key')}",
                "    if REST:",
                "        kept_rest = keep[:, None] & (rest < HEAD_DIM)[None, :]",
                "        key_rest = tl.load(k_at + rest[None, :] * stride_kd, mask=kept_rest, other=0.0)",
                "    " + _MORE.format(a="query", b="key"),
                "    scores = scores * (scale * 1.4426950408889634)",
                *("    " + line for line in self._picked_mask(phase)),
                "    if SAME:",
                "        value = key",
                "    else:",
                "        v_at = v_base + tl.maximum(columns, 0).to(tl.int64)[:, None] * stride_vn",
                "        kept_value = keep[:, None] & (dims_v < VALUE_DIM)[None, :]",
                "        value = tl.load(v_at + dims_v[None, :] * stride_vd, mask=kept_value, other=0.0)",
                *("    " + line for line in self._folded),
            ]
        return lines

    _folded: tuple[str, ...] = ()

    def _picked_mask(self, phase: Picked) -> list[str]:
        if phase.mask == TRUE:
            return ["scores = tl.where(keep[None, :], scores, float('-inf'))"]
        return [
            f"k = tl.maximum(columns, 0)[None, :]{'.to(tl.int64)' if self.wide else ''}",
            "safe_q, safe_k = q, tl.minimum(k, n - 1)",
            f"scores = tl.where(keep[None, :] & ({self._mask(phase.mask)}), scores, float('-inf'))",
        ]


class PickedForward(_ByPicked, Forward):
    """The output: the online softmax over listed keys."""

    kind = "picked"
    _folded = ("acc, total, top = fold(acc, total, top, scores, value)",)


class PickedQueries(_ByPicked, Queries):
    """The gradient of q; with ``ADD`` those of listed keys and values too, added up in the order that chance decides."""

    kind = "picked_queries"
    pointers = (*Queries.pointers, "more_k_ptr", "more_v_ptr")
    strides = Queries.strides
    constants = (*_ByPicked.constants, "ADD")
    own_constants, own_case = ", rest, same, adds", "members, same, adds"
    _gradient = (
        "g_at = grad_ptr + b64 * stride_gb + head.to(tl.int64)[:, None] * stride_gh + row.to(tl.int64) * stride_gn",
        "g_at = g_at + dims_v[None, :] * stride_gd",
    )
    _folded = (
        "p = tl.exp2(scores - norm[:, None])",
        "slope = p * (tl.dot(grad, value.T, input_precision='ieee') - delta[:, None])",
        "acc = tl.dot(slope.to(key.dtype), key, acc, input_precision='ieee')",
        "if REST:",
        "    acc_rest = tl.dot(slope.to(key.dtype), key_rest, acc_rest, input_precision='ieee')",
        "if ADD:",
        "    more_at = ((b64 * (heads // sharing) + kv) * n + tl.maximum(columns, 0).to(tl.int64))[:, None]",
        "    more = tl.dot(slope.to(key.dtype).T, query, input_precision='ieee')",
        "    tl.atomic_add(more_k_ptr + more_at * HEAD_DIM + dims[None, :], more, mask=kept_key, sem='relaxed')",
        "    if REST:",
        "        more = tl.dot(slope.to(key.dtype).T, query_rest, input_precision='ieee')",
        "        tl.atomic_add(more_k_ptr + more_at * HEAD_DIM + rest[None, :], more, mask=kept_rest, sem='relaxed')",
        "    more = tl.dot(p.to(key.dtype).T, grad, input_precision='ieee')",
        "    kept_more = keep[:, None] & (dims_v < VALUE_DIM)[None, :]",
        "    tl.atomic_add(more_v_ptr + more_at * VALUE_DIM + dims_v[None, :], more, mask=kept_more, sem='relaxed')",
    )

    def _setup(self) -> list[str]:
        prior = "tl.load(prior_ptr + at[:, None] * HEAD_DIM + rest[None, :], mask=valid_rest & (REST > 0), other=0.0)"
        empty = "tl.zeros([ROWS, REST if REST else 16], tl.float32)"
        return [*super()._setup(), f"acc_rest = {prior if self.group.chained else empty}"]

    def _finish(self) -> list[str]:
        factor = " * scale" if self.group.last else ""
        return [
            *super()._finish(),
            "if REST:",
            "    dq_at = dq_ptr + put[:, None] * HEAD_DIM + rest[None, :]",
            f"    tl.store(dq_at, (acc_rest{factor}).to(dq_ptr.dtype.element_ty), mask=valid_rest)",
        ]


class PickedKeys(Keys):
    """The gradients of k and v of one listed block, from the queries that list it."""

    kind = "picked_keys"
    own_lengths = ("members",)
    constants = (*Keys.constants, "REST")
    sizes, options, own_constants, own_case = PICKED_SIZES, "own_options", ", rest", "members"

    @property
    def launched(self) -> tuple[str, str]:  # type: ignore[override]
        return f"-(-n // {self.unit}) * -(-{self.unit} // own_rows)", "batch * (count if sharing == 1 else k.shape[1])"

    @property
    def unit(self) -> int:
        """Keys in a block; one pass walks lists of one kind."""
        phase = self.group.phases[0]
        assert isinstance(phase, Picked)
        return phase.unit

    def _tile(self) -> list[str]:
        return [
            f"parts = ({self.unit} + ROWS - 1) // ROWS",
            "block = tl.program_id(0) // parts",
            "batch = tl.program_id(1) // run_heads",
            "slot = tl.program_id(1) % run_heads",
            "b64 = batch.to(tl.int64)",
            "lanes = tl.program_id(0) % parts * ROWS + tl.arange(0, ROWS)",
            f"rows = tl.where(lanes < {self.unit}, block * {self.unit} + lanes, n)",
            f"k = rows[:, None]{'.to(tl.int64)' if self.wide else ''}",
        ]

    def _setup(self) -> list[str]:
        prior = "tl.load(dk_prior + at[:, None] * HEAD_DIM + rest[None, :], mask=valid_rest & (REST > 0), other=0.0)"
        return [
            "rest = BLOCK_D + tl.arange(0, REST if REST else 16)",
            *super()._setup(),
            "valid_rest = valid_row[:, None] & (rest < HEAD_DIM)[None, :]",
            "key_rest = tl.load(k_at + rest[None, :] * stride_kd, mask=valid_rest & (REST > 0), other=0.0)",
            "dk_rest = tl.zeros([ROWS, REST if REST else 16], tl.float32)",
            "if CARRY:",
            f"    dk_rest = {prior}",
        ]

    def _body(self) -> list[str]:
        lines = ["sets = sharing // members"]
        lines += [line for name, atom in self.atoms for line in self._atom_setup(name, atom)]
        for i, phase in enumerate(self.group.phases):
            assert isinstance(phase, Picked)
            lines += [
                "for turn in range(0, sets):",
                "    set_of = kv * sets + turn",
                f"    place_of = b64 * order_{i}_b + set_of.to(tl.int64) * order_{i}_h + block",
                f"    begin = tl.load(begin_{i} + place_of)",
                f"    listed = tl.load(count_{i} + place_of) * members",
                "    for t in range(0, (listed + COLUMNS - 1) // COLUMNS):",
                *("        " + line for line in self._queries_of(i, phase)),
            ]
        return lines

    def _queries_of(self, i: int, phase: Picked) -> list[str]:
        lines = [
            "place = t * COLUMNS + tl.arange(0, COLUMNS)",
            "head = set_of * members + place % members",
            f"keep = (place < listed){_of_pass(self.group)}",
            f"query_at = tl.load(order_{i} + begin + place // members, mask=place < listed, other=0).to(tl.int64)",
            "q_at = q_ptr + b64 * stride_qb + (head.to(tl.int64) * stride_qh + query_at * stride_qn)[:, None]",
            "query = tl.load(q_at + dims[None, :] * stride_qd, mask=keep[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)",
            "g_at = grad_ptr + b64 * stride_gb + (head.to(tl.int64) * stride_gh + query_at * stride_gn)[:, None]",
            "grad = tl.load(g_at + dims_v[None, :] * stride_gd, mask=keep[:, None] & (dims_v < VALUE_DIM)[None, :], other=0.0)",
            "norm_at = (b64 * heads + head) * n_q + query_at",
            "norm = tl.load(norm_ptr + norm_at, mask=keep, other=float('inf'))",
            "delta = tl.load(delta_ptr + norm_at, mask=keep, other=0.0)",
            _SCORES.format(a="key", b="query"),
            "if REST:",
            "    kept_rest = keep[:, None] & (rest < HEAD_DIM)[None, :]",
            "    query_rest = tl.load(q_at + rest[None, :] * stride_qd, mask=kept_rest, other=0.0)",
            _MORE.format(a="key", b="query"),
            "scores = scores * (scale * 1.4426950408889634)",
        ]
        if phase.mask != TRUE:
            lines += [
                f"q = (query_at + n - n_q)[None, :]{'' if self.wide else '.to(tl.int32)'}",
                "safe_q, safe_k = q, tl.minimum(k, n - 1)",
                f"scores = tl.where({self._mask(phase.mask)}, scores, float('-inf'))",
            ]
        return [
            *lines,
            "p = tl.exp2(scores - norm[None, :])",
            "dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision='ieee')",
            "slope = (p * (tl.dot(value, grad.T, input_precision='ieee') - delta[None, :])).to(query.dtype)",
            "dk = tl.dot(slope, query, dk, input_precision='ieee')",
            "if REST:",
            "    dk_rest = tl.dot(slope, query_rest, dk_rest, input_precision='ieee')",
        ]

    def _finish(self) -> list[str]:
        return [
            *super()._finish(),
            "if REST:",
            "    dk_at = dk_ptr + put[:, None] * HEAD_DIM + rest[None, :]",
            "    tl.store(dk_at, (dk_rest * factor).to(dk_ptr.dtype.element_ty), mask=valid_rest)",
        ]
