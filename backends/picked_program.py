"""Kernels that walk the lists of selections, as Triton source: the rows of a tile are the query heads that share a list.

For the output and the gradient of q a program has one query, and fetches the listed keys of its key head, a tile at a time.
Where few heads share a list of long blocks, it has some of the queries that list one block instead, and walks that block. The
lists are taken slot by slot, a launch each, so that a query is in one program of a launch; the next goes on from what that
has left in memory.
For the gradients of k and v it has one listed block of keys, and fetches the queries that list it, with all their heads. A
block of one key leaves most of a tile empty, so that the program of the query adds its part to them where that is allowed.
Head dims that are no powers of two come in two parts, of ``BLOCK_D`` and of ``REST``, so that little is padded.
"""

from __future__ import annotations

from dataclasses import replace

from patternc.lower.plan import FEW_HEADS, HeadPlan, Picked, Tile
from patternc.relation import View
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
    """What the kernels have in common whose rows are queries: here, those of one query."""

    own_lengths = ("members",)
    constants = (*Program.constants, "REST", "SAME")
    sizes, options, own_constants, own_case = PICKED_SIZES, "own_options", ", rest, same", "members, same"
    launched = "n_q * -(-members // own_rows)", "batch * (heads // members)"
    rows_for: str | int = "members"
    by_block: type[Program] | None = None

    def __init__(self, index: int, group: HeadPlan, tile: Tile, shares: tuple[HeadPlan, ...], source: int):
        super().__init__(index, group, tile, shares, source)
        if self.by_block and any(isinstance(phase, Picked) and phase.long for phase in group.phases):
            self.instead = self.by_block(index, group, tile, shares, source)

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
            f"valid_row = (lanes < {self._rows_of}){_of_pass(self.group)}",
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

    _rows_of = "members"

    def _key_parameters(self, i: int) -> list[str]:
        return [f"keys_{i}", *(f"keys_{i}_{axis}" for axis in "bhq"), f"count_{i}", f"count_{i}_b", f"count_{i}_h"]

    def _body(self) -> list[str]:
        lines = []
        for i, phase in enumerate(self.group.phases):
            assert isinstance(phase, Picked)
            lines += [
                *self._walked(i, phase),
                "    k_at = k_base + tl.maximum(columns, 0).to(tl.int64)[:, None] * stride_kn",
                *("    " + line for line in self._key),
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
                *("        " + line for line in self._value),
                *("    " + line for line in self._folded),
            ]
        return lines

    def _walked(self, i: int, phase: Picked) -> list[str]:
        """The head of the loop over keys, and which a step has: ``columns``, those that are to ``keep``."""
        return [
            f"keys_at = keys_{i} + b64 * keys_{i}_b + set_of.to(tl.int64) * keys_{i}_h + row.to(tl.int64) * keys_{i}_q",
            f"listed = tl.load(count_{i} + b64 * count_{i}_b + set_of.to(tl.int64) * count_{i}_h + row) * {phase.unit}",
            "for t in range(0, (listed + COLUMNS - 1) // COLUMNS):",
            "    place = t * COLUMNS + tl.arange(0, COLUMNS)",
            f"    block = tl.load(keys_at + place // {phase.unit}, mask=place < listed, other=-1)",
            f"    columns = block * {phase.unit} + place % {phase.unit}",
            "    keep = (block >= 0) & (columns < n)",
        ]

    _key: tuple[str, ...] = (
        "kept_key = keep[:, None] & (dims < HEAD_DIM)[None, :]",
        "key = tl.load(k_at + dims[None, :] * stride_kd, mask=kept_key, other=0.0)",
    )
    _value: tuple[str, ...] = (
        "v_at = v_base + tl.maximum(columns, 0).to(tl.int64)[:, None] * stride_vn",
        "kept_value = keep[:, None] & (dims_v < VALUE_DIM)[None, :]",
        "value = tl.load(v_at + dims_v[None, :] * stride_vd, mask=kept_value, other=0.0)",
    )
    _folded: tuple[str, ...] = ()

    def _picked_mask(self, phase: Picked) -> list[str]:
        if phase.mask == TRUE:
            return ["scores = tl.where(keep[None, :], scores, float('-inf'))"]
        return [
            f"k = tl.maximum(columns, 0)[None, :]{'.to(tl.int64)' if self.wide else ''}",
            "safe_q, safe_k = q, tl.minimum(k, n - 1)",
            f"scores = tl.where(keep[None, :] & ({self._mask(phase.mask)}), scores, float('-inf'))",
        ]


class _ByBlock(_ByPicked):
    """The same for some of the queries that list one block in a slot, with the heads that share the list.

    It goes on from what the slots before have left, and leaves that for the next.
    """

    suits = f"members < {FEW_HEADS}"
    own_case = "same"
    launched = "block_0.shape[2]", "batch * (heads // members)"
    rows_for = 64
    neighbours = True
    starts: type[Program]
    _rows_of = "listed"

    def __init__(self, index: int, group: HeadPlan, tile: Tile, shares: tuple[HeadPlan, ...], source: int):
        super().__init__(index, replace(group, chained=True, last=False), tile, shares, source)
        if not group.chained:
            nothing = replace(group, atoms=(), selections=(), phases=(), last=False)
            self.start = self.starts(index, nothing, tile, (), source)

    @property
    def repeated(self) -> tuple[str, ...]:  # type: ignore[override]
        made = f"by_block(keys_0[..., slot : slot + 1], -(-n // {self.unit}), members, own_rows)"
        return "for slot in range(keys_0.shape[3]):", f"    order_0, begin_0, count_0, block_0, before_0 = {made}"

    @property
    def unit(self) -> int:
        """Keys in a block; with blocks, a pass walks one list."""
        (phase,) = self.group.phases
        assert isinstance(phase, Picked)
        return phase.unit

    def _key_parameters(self, i: int) -> list[str]:
        of_each = [f"{what}_{i}{axis}" for what in ("count", "block") for axis in ("", "_b", "_h")]
        return [f"order_{i}", f"begin_{i}", f"before_{i}", *of_each]

    def _tile(self) -> list[str]:
        return [
            "batch = tl.program_id(1) // (heads // members)",
            "set_of = tl.program_id(1) % (heads // members)",
            "b64 = batch.to(tl.int64)",
            "block = tl.load(block_0 + b64 * block_0_b + set_of.to(tl.int64) * block_0_h + tl.program_id(0))",
            f"inside = block * {self.unit} < n",
            "list_at = b64 * count_0_b + set_of.to(tl.int64) * count_0_h + block",
            "listed = tl.load(count_0 + list_at, mask=inside, other=0) * members",
            "turn = tl.program_id(0) - tl.load(before_0 + list_at, mask=inside, other=0)",
            "lanes = turn * ROWS + tl.arange(0, ROWS)",
            "order_at = order_0 + tl.load(begin_0 + list_at, mask=inside, other=0)",
            "row = tl.load(order_at + lanes // members, mask=lanes < listed, other=0)",
            "head = set_of * members + lanes % members",
            "rows = n - n_q + row",
            f"q = rows[:, None]{'.to(tl.int64)' if self.wide else ''}",
        ]

    def _walked(self, i: int, phase: Picked) -> list[str]:  # noqa: ARG002
        return [
            "some = tl.max(valid_row.to(tl.int32), 0) > 0",
            f"for t in range(0, tl.where(some, ({phase.unit} + COLUMNS - 1) // COLUMNS, 0)):",
            f"    first = block * {phase.unit} + t * COLUMNS",
            "    columns = first + tl.arange(0, COLUMNS)",
            f"    keep = (columns < (block + 1) * {phase.unit}) & (columns < n)",
        ]

    @property
    def _key(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"key = {self._load('k', 'kv', View(), '', '1')}",)

    @property
    def _value(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"value = {self._load('v', 'kv', View(), '', '1')}",)


class BlockForward(_ByBlock, Forward):
    """The output, a slot of the lists at a time."""

    kind = "blocks"
    starts = Forward
    _folded = ("acc, total, top = fold(acc, total, top, scores, value)",)


class PickedForward(_ByPicked, Forward):
    """The output: the online softmax over listed keys."""

    kind = "picked"
    by_block = BlockForward
    _folded = BlockForward._folded


class _PickedQueries(_ByPicked, Queries):
    """The gradient of q, and nothing else."""

    strides = Queries.strides
    _gradient = (
        "g_at = grad_ptr + b64 * stride_gb",
        "g_at = g_at + (head.to(tl.int64) * stride_gh + row.to(tl.int64) * stride_gn)[:, None] + dims_v[None, :] * stride_gd",
    )
    _folded: tuple[str, ...] = (
        "p = tl.exp2(scores - norm[:, None])",
        "slope = p * (tl.dot(grad, value.T, input_precision='ieee') - delta[:, None])",
        "acc = tl.dot(slope.to(key.dtype), key, acc, input_precision='ieee')",
        "if REST:",
        "    acc_rest = tl.dot(slope.to(key.dtype), key_rest, acc_rest, input_precision='ieee')",
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


class BlockQueries(_ByBlock, _PickedQueries):
    """The gradient of q, a slot of the lists at a time."""

    kind = "blocks_queries"
    starts = Queries


class PickedQueries(_PickedQueries):
    """The gradient of q; with ``ADD`` those of listed keys and values too, added up in the order that chance decides."""

    kind = "picked_queries"
    by_block = BlockQueries
    pointers = (*Queries.pointers, "more_k_ptr", "more_v_ptr")
    constants = (*_ByPicked.constants, "ADD")
    own_constants, own_case = ", rest, same, adds", "members, same, adds"
    _folded = (
        *_PickedQueries._folded,
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
    def rows_for(self) -> int:  # type: ignore[override]
        return self.unit

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
