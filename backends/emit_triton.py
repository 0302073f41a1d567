"""The Triton backend: one kernel per group of heads, every phase of the plan in it, one online softmax."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from textwrap import indent

from patternc.backend import Request
from patternc.lower.cost import TileCost
from patternc.lower.plan import Atom, Draws, Gather, HeadPlan, Listed, Phase, Plan, Tile, Walk
from patternc.relation import IDENTITY, Loop, View
from patternc.scalar import TRUE, Scalar, size
from patternc.terms import Document, Layout

from .assemble import PythonNames, header, inputs, sampler, selections, verbatim
from .printer import POSITION_LIMIT, is_wide, python, triton

DTYPES = ("float16", "bfloat16", "float32")
MAX_HEAD_DIM = 256


class TritonBackend:
    """NVIDIA and AMD GPUs, and CPU tensors in Triton's interpreter; the forward pass."""

    name = "triton"
    rank = 20
    differentiable = False
    views = True

    def unsupported(self, request: Request) -> list[str]:
        reasons = []
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if find_spec("triton") is None:
            reasons.append("triton is not installed")
        if request.device != "cuda" and not (interpreted and request.device == "cpu"):
            reasons.append(f"it runs on cuda devices, not {request.device}")
        if request.dtype not in DTYPES:
            reasons.append(f"dtype {request.dtype} is not one of {', '.join(DTYPES)}")
        if interpreted and request.dtype == "bfloat16":
            reasons.append("Triton's interpreter computes bfloat16 wrongly")
        for what, wide in (("head_dim", request.head_dim), ("value head_dim", request.value_dim)):
            if wide > MAX_HEAD_DIM:
                reasons.append(f"{what} {wide} is over {MAX_HEAD_DIM}")
        return reasons

    def tiles(self, request: Request) -> tuple[TileCost, ...]:
        wide = max(request.head_dim, request.value_dim)
        if request.dtype == "float32":
            return (TileCost(Tile(64 if wide <= 128 else 32, 32), 1, 2, 1),)
        if wide > 128:
            return (TileCost(Tile(64, 16), 1, 2, 1),)
        if request.generation < 9:
            return (TileCost(Tile(64, 32), 1, 2, 1),)
        # Measured on an H200, bf16, head_dim 128: dense rows prefer 128 queries, masks are cheaper with 64.
        return TileCost(Tile(64, 64), 1, 2, 1), TileCost(Tile(128, 64), 1.57, 6, 2)

    def emit(self, plan: Plan) -> str:
        names = [PythonNames(index, group) for index, group in enumerate(plan.heads)]
        host = [part for name in names for part in (*name.atoms(), *name.selections())]
        kernels = [_Kernel(index, group, plan.tile) for index, group in enumerate(plan.heads)]
        listings = [part for kernel in kernels for part in kernel.listings()]
        return (
            "\n\n\n".join(
                [
                    f"{header(plan, self.name)}\n\nfrom collections.abc import Callable\nfrom typing import Any\n\n"
                    "import torch\nimport triton\nimport triton.language as tl\n\n"
                    f"ROWS, COLUMNS = {plan.tile.rows}, {plan.tile.columns}\n"
                    f"MASK_SIZE = {_mask_size(plan)}  # long masks compete with the accumulator for registers\n"
                    f"COMPACTED = {_compacted(plan)}  # whether some key addresses are computed one by one\n{inputs(plan)}",
                    verbatim("patternc.runtime", "support.py"),
                    *sampler(plan),
                    *(_device_sampler(part) for part in sampler(plan)),
                    verbatim("patternc.backends", "triton_kernel.py"),
                    *host,
                    selections(plan, names),
                    *listings,
                    *(part for kernel in kernels for part in kernel.source()),
                    _forward(kernels),
                ]
            )
            + "\n"
        )


def _device_sampler(source: str) -> str:
    """`mix` and `below` once more, as device functions: the same text, compiled by Triton."""
    text = re.sub(r"\b(mix|below)\b", r"device_\1", source[: source.index("def draw_ranks")].strip())
    return text.replace(": Any", "").replace(" -> Any", "").replace("def device_", "@triton.jit\ndef device_")


class _Kernel:
    """The kernel of one group of heads."""

    def __init__(self, index: int, group: HeadPlan, tile: Tile):
        self.index, self.group, self.tile = index, group, tile
        self._wide = any(is_wide(*_scalars(phase)) for phase in group.phases) or any(
            is_wide(*(e for loop in atom.loops for e in (loop.start, loop.count)))
            for _, atom in group.atoms
            if isinstance(atom, Draws)
        )

    @property
    def listed(self) -> list[tuple[int, Listed]]:
        return [(i, phase) for i, phase in enumerate(self.group.phases) if isinstance(phase, Listed)]

    def source(self) -> list[str]:
        draws = [self._draws(name, atom) for name, atom in self.group.atoms if isinstance(atom, Draws)]
        return [*draws, self._kernel()]

    def _draws(self, name: str, atom: Draws) -> str:
        names = {"q": "row", "n": "length"}
        lines = [
            "@triton.jit",
            f"def {name}_g{self.index}_drawn(q, head, n, ROWS: tl.constexpr):",
            f'    """The draws of each query block q (ROWS,): {atom.choice}, as (ROWS, {_slots(atom)}), -1 for none."""',
            "    row = q.to(tl.int64)[:, None]",
            "    length = row * 0 + n",
        ]
        for i, loop in enumerate(atom.loops):
            lines.append(f"    count_{i} = tl.maximum({triton(loop.count, names)}, 0) + row * 0")
        lines.append(f"    total = {' + '.join(f'count_{i}' for i in range(len(atom.loops))) or 'row * 0'}")
        if atom.choice.pool is not None:
            lines.append(f"    total = tl.minimum(total, {atom.choice.pool})")
        lines.append(f"    rank = drawn_ranks(total, head, row, {atom.choice.seed}, {atom.choice.draws}, {_slots(atom)}, ROWS)")
        lines.append("    found = rank * 0 - 1")
        if any(loop.interleaved for loop in atom.loops):
            lines += self._merged(atom, names)
        else:
            lines.append("    rank = tl.where(rank < 0, 1 << 40, rank)")
            for i, loop in enumerate(atom.loops):
                value = f"{triton(loop.start, names)} + {loop.step} * rank"
                lines.append(f"    found = tl.where((rank >= 0) & (rank < count_{i}), {value}, found)")
                lines.append(f"    rank = rank - count_{i}")
        lines.append("    return found.to(tl.int32)")
        return "\n".join(lines)

    def _merged(self, atom: Draws, names: dict[str, str]) -> list[str]:
        """By bisection, as loops that interleave need: the smallest value that more than ``rank`` values do not exceed."""
        reached = []
        for i, loop in enumerate(atom.loops):
            start = triton(loop.start, names)
            passed = f"tl.where(further < {start}, 0, (further - ({start})) // {loop.step} + 1)"
            reached.append(f"        below += tl.minimum({passed}, count_{i})")
        return [
            f"    reach = tl.full([1, 1], {POSITION_LIMIT // 2}, tl.int64)",
            f"    for _ in range({(POSITION_LIMIT - 1).bit_length()}):",
            "        further = found + reach",
            "        below = rank * 0",
            *reached,
            "        found = tl.where(below <= rank, further, found)",
            "        reach = reach // 2",
            "    found = tl.where((rank >= 0) & (rank < total), found + 1, -1)",
        ]

    def _parameters(self) -> list[str]:
        found = []
        for name, atom in self.group.atoms:
            if isinstance(atom, Layout):
                found += [f"{name}_ptr", f"{name}_b", f"{name}_h", f"{name}_r"]
            elif isinstance(atom, Document):
                found += [f"{name}_ptr", f"{name}_b"]
        for i, phase in enumerate(self.group.phases):
            match phase:
                case Walk(documents=documents):
                    found += [p for j in range(len(documents)) for p in (f"first_{i}_{j}", f"end_{i}_{j}", f"first_{i}_{j}_b")]
                case Listed():
                    found += [f"list_{i}", f"count_{i}", f"list_{i}_b", f"list_{i}_h", f"list_{i}_i"]
                case Gather(int(), _, _):
                    found += [f"keys_{i}", f"keys_{i}_b", f"keys_{i}_h", f"keys_{i}_q", f"keys_{i}_w"]
        return found

    def _kernel(self) -> str:
        strides = [f"stride_{t}{axis}" for t in "qkv" for axis in "bhnd"]
        lengths = ["n", "n_q", "heads", "sharing", "run_heads"]
        fixed = [p for p in self._parameters() if not p.endswith(("_ptr",))]
        unspecialised = [*lengths, *(p for p in fixed if p.endswith(("_b", "_h", "_r", "_i", "_q", "_w")))]
        parameters = [
            "q_ptr",
            "k_ptr",
            "v_ptr",
            "out_ptr",
            "prior_ptr",
            "lse_ptr",
            *self._parameters(),
            *strides,
            *lengths,
            "scale",
        ]
        constants = ["FIRST", "RUN", "PERIOD", "HEAD_DIM", "VALUE_DIM", "BLOCK_D", "BLOCK_V", "ROWS", "COLUMNS"]
        signature = ",\n    ".join([", ".join(parameters), ", ".join(f"{c}: tl.constexpr" for c in constants)])
        atoms = [line for name, atom in self.group.atoms for line in self._atom_setup(name, atom)]
        body = [
            *self._rows(),
            "batch = tl.program_id(1) // run_heads",
            "slot = tl.program_id(1) % run_heads",
            "head = slot // RUN * PERIOD + FIRST + slot % RUN",
            "valid_row = (rows >= n - n_q) & (rows < n)",
            "dims = tl.arange(0, BLOCK_D)",
            "dims_v = tl.arange(0, BLOCK_V)",
            "b64 = batch.to(tl.int64)",
            "k_base = k_ptr + b64 * stride_kb + (head // sharing).to(tl.int64) * stride_kh",
            "v_base = v_ptr + b64 * stride_vb + (head // sharing).to(tl.int64) * stride_vh",
            "q_base = q_ptr + b64 * stride_qb + head.to(tl.int64) * stride_qh",
            "q_at = q_base + (rows - (n - n_q)).to(tl.int64)[:, None] * stride_qn + dims[None, :] * stride_qd",
            "query = tl.load(q_at, mask=valid_row[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)",
            "scale = scale * 1.4426950408889634  # the softmax is computed in base 2",
            f"q = rows[:, None]{'.to(tl.int64)' if self._wide else ''}",
            f"I = tile{'.to(tl.int64)' if self._wide else ''}  # noqa: E741",
            *atoms,
            "at = (b64 * heads + head) * n_q + rows - (n - n_q)",
            "valid_out = valid_row[:, None] & (dims_v < VALUE_DIM)[None, :]",
            *self._start(),
        ]
        for i, phase in enumerate(self.group.phases):
            body += self._phase(i, phase)
        body += [
            "empty = total == 0.0",
            "out = acc / tl.where(empty, 1.0, total)[:, None]",
            "lse = tl.where(empty, float('-inf'), (top + tl.log2(total)) * 0.6931471805599453)",
            "tl.store(lse_ptr + at, lse, mask=valid_row)",
            "out_at = out_ptr + at[:, None] * VALUE_DIM + dims_v[None, :]",
            "tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=valid_out)",
        ]
        return f"@triton.jit(do_not_specialize={unspecialised!r})\ndef kernel_g{self.index}(\n    {signature}\n):\n" + indent(
            "\n".join(body), "    "
        )

    def _rows(self) -> list[str]:
        """The queries of this program: a tile of rows, the last ones (often the longest) first."""
        stride = self.group.stride
        if stride == 1:
            return [
                "tile = (n - n_q) // ROWS + tl.num_programs(0) - 1 - tl.program_id(0)  # the last rows first",
                "first_row = tile * ROWS",
                "rows = first_row + tl.arange(0, ROWS)",
            ]
        return [
            f"r = tl.program_id(0) % {stride}",
            f"tile = (n - n_q) // {stride} // ROWS + tl.num_programs(0) // {stride} - 1 - tl.program_id(0) // {stride}",
            f"rows = {stride} * (tile * ROWS + tl.arange(0, ROWS)) + r",
        ]

    def _start(self) -> list[str]:
        """Nothing read yet, or the state that the pass before left: its output with its log-sum-exp as a single key."""
        if not self.group.chained:
            return [
                "top = tl.full([ROWS], float('-inf'), tl.float32)",
                "total = tl.zeros([ROWS], tl.float32)",
                "acc = tl.zeros([ROWS, BLOCK_V], tl.float32)",
            ]
        return [
            "top = tl.load(lse_ptr + at, mask=valid_row, other=float('-inf')) * 1.4426950408889634",
            "total = tl.where(top == float('-inf'), 0.0, 1.0)",
            "acc = tl.load(prior_ptr + at[:, None] * VALUE_DIM + dims_v[None, :], mask=valid_out, other=0.0)",
        ]

    def _atom_setup(self, name: str, atom: Atom) -> list[str]:
        match atom:
            case Layout():
                return [f"{name}_base = {name}_ptr + b64 * {name}_b + head.to(tl.int64) * {name}_h"]
            case Document():
                return [
                    f"{name}_base = {name}_ptr + b64 * {name}_b",
                    f"{name}_rows = tl.load({name}_base + tl.minimum(rows, n - 1))[:, None]",
                ]
            case Draws(choice, _):
                return [f"{name}_keys = {name}_g{self.index}_drawn(rows // {choice.block}, head, n, ROWS)"]

    def _atom(self, name: str, atom: Atom) -> str:
        """Whether each pair holds: q (ROWS, 1), k (1 or ROWS, columns), k within the sequence."""
        match atom:
            case Layout(_, block):
                row = f"(tl.minimum(q, n - 1) // {block}).to(tl.int64) * {name}_r"
                return f"(tl.load({name}_base + {row} + safe_k // {block}) != 0)"
            case Document():
                return f"({name}_rows == tl.load({name}_base + safe_k))"
            case Draws(choice, _):
                return f"member({name}_keys, k // {choice.block}, {choice.draws}, {_slots(atom)})"

    def _mask(self, mask: Scalar) -> str:
        return triton(mask, {name: self._atom(name, atom) for name, atom in self.group.atoms})

    def _phase(self, i: int, phase: Phase) -> list[str]:
        match phase:
            case Walk(full, partial, mask, _, documents, view):
                setup = [f"# phase {i}: key tiles in closed form"]
                if documents:
                    setup += self._clip(i, len(documents))
                lines = setup
                if full:
                    lines += self._walk(f"{i}f", full, None, view, clipped=bool(documents))
                if partial:
                    lines += self._walk(f"{i}p", partial, mask, view, clipped=bool(documents))
                return lines
            case Listed(_, _, mask):
                return [
                    f"# phase {i}: key tiles listed at run time",
                    f"at_{i} = b64 * list_{i}_b + head.to(tl.int64) * list_{i}_h + tile - (n - n_q) // ROWS",
                    f"for t in range(0, tl.load(count_{i} + at_{i})):",
                    f"    J = tl.load(list_{i} + at_{i} * list_{i}_i + t)",
                    *("    " + line for line in self._step(mask)),
                ]
            case Gather(source, slots, mask):
                return self._gather(i, source, slots, mask)

    def _clip(self, i: int, documents: int) -> list[str]:
        """The range of key tiles that the documents of this row tile reach."""
        lines = ["low = 0", "high = n"]
        for j in range(documents):
            lines += [
                f"low = tl.maximum(low, tl.load(first_{i}_{j} + b64 * first_{i}_{j}_b + tl.maximum(first_row, n - n_q)))",
                f"high = tl.minimum(high, tl.load(end_{i}_{j} + b64 * first_{i}_{j}_b + tl.minimum(first_row + ROWS, n) - 1))",
            ]
        return [*lines, "low = low // COLUMNS", "high = (high + COLUMNS - 1) // COLUMNS"]

    def _walk(self, key: str, loops: tuple[Loop, ...], mask: Scalar | None, view: View, *, clipped: bool) -> list[str]:
        lines = []
        for j, loop in enumerate(loops):
            lines += [f"start_{key}{j} = {triton(loop.start)}", f"count_{key}{j} = tl.maximum({triton(loop.count)}, 0)"]
            if clipped:
                lines += [
                    f"skip_{key}{j} = tl.maximum(low - start_{key}{j} + {loop.step - 1}, 0) // {loop.step}",
                    f"last_{key}{j} = div(high - 1 - start_{key}{j}, {loop.step}) + 1",
                    f"count_{key}{j} = tl.maximum(tl.minimum(count_{key}{j}, last_{key}{j}) - skip_{key}{j}, 0)",
                    f"start_{key}{j} = start_{key}{j} + {loop.step} * skip_{key}{j}",
                ]
        total = " + ".join(f"count_{key}{j}" for j in range(len(loops)))
        lines.append(f"for t in range(0, {total}):")
        before = ""
        for j, loop in enumerate(loops):
            offset = f"t - ({before})" if before else "t"
            value = f"start_{key}{j} + {loop.step} * ({offset})"
            lines.append(f"    J = {value}" if not before else f"    J = tl.where(t >= {before}, {value}, J)")
            before = f"{before} + count_{key}{j}" if before else f"count_{key}{j}"
        step = self._step(mask, view)
        guards = [self._guard(key, j, loops) for j in range(len(loops)) if loops[j].guard != TRUE]
        if guards:
            lines += [f"    if {' & '.join(guards)}:", *("        " + line for line in step)]
        else:
            lines += ["    " + line for line in step]
        return lines

    def _guard(self, key: str, j: int, loops: tuple[Loop, ...]) -> str:
        """Whether step t is not in loop j, or the loop's guard holds for its tile."""
        begin = " + ".join(["0", *(f"count_{key}{m}" for m in range(j))])
        return f"((t < {begin}) | (t >= {begin} + count_{key}{j}) | ({triton(loops[j].guard, {'x': 'J'})}))"

    def _step(self, mask: Scalar | None, view: View = IDENTITY) -> list[str]:
        """One key tile J: scores, mask (None: the tile is full) and the softmax update."""
        bound = mask is not None
        load, place, keys = "load_tile", "first", "first + tl.arange(0, COLUMNS)"
        lines = ["first = (J * COLUMNS).to(tl.int32)"]
        if view != IDENTITY:
            load, place, keys = "load_rows", "places", "places"
            lines.append(f"places = {triton(view.key, {'u': '(first + tl.arange(0, COLUMNS))'})}")
        lines += [
            f"key = {load}(k_base, {place}, stride_kn, stride_kd, n, COLUMNS, HEAD_DIM, BLOCK_D, {bound})",
            "scores = tl.dot(query, key.T, input_precision='ieee') * scale",
        ]
        if mask is not None:
            lines += [
                f"k = ({keys})[None, :]{'.to(tl.int64)' if self._wide else ''}",
                "safe_k = tl.minimum(k, n - 1)",
                f"scores = tl.where((k < n) & ({self._mask(mask)}), scores, float('-inf'))",
            ]
        lines += [
            f"value = {load}(v_base, {place}, stride_vn, stride_vd, n, COLUMNS, VALUE_DIM, BLOCK_V, {bound})",
            "acc, total, top = fold(acc, total, top, scores, value)",
        ]
        return lines

    def _gather(self, i: int, source: str | int, slots: int, mask: Scalar) -> list[str]:
        if isinstance(source, int):
            at = f"keys_{i} + b64 * keys_{i}_b + head.to(tl.int64) * keys_{i}_h + (rows - (n - n_q)).to(tl.int64) * keys_{i}_q"
            setup = [f"keys_at = {at}"]
            count, key = f"keys_{i}_w", "tl.load(keys_at + t, mask=valid_row, other=-1)"
        else:
            atom = dict(self.group.atoms)[source]
            assert isinstance(atom, Draws)
            setup, count, key = [], str(slots), f"column({source}_keys, t, {_slots(atom)})"
        return [
            f"# phase {i}: keys gathered one by one",
            *setup,
            f"for t in range(0, {count}):",
            f"    key_at = {key}",
            f"    k = tl.maximum(key_at, 0)[:, None]{'.to(tl.int64)' if self._wide else ''}",
            "    safe_k = k",
            f"    keep = (key_at >= 0)[:, None] & valid_row[:, None] & ({self._mask(mask)})",
            "    k_at = k_base + k.to(tl.int64) * stride_kn + dims[None, :] * stride_kd",
            "    key = tl.load(k_at, mask=keep & (dims < HEAD_DIM)[None, :], other=0.0)",
            "    scores = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1) * scale",
            "    scores = tl.where(tl.max(keep.to(tl.int32), 1) > 0, scores, float('-inf'))",
            "    v_at = v_base + k.to(tl.int64) * stride_vn + dims_v[None, :] * stride_vd",
            "    value = tl.load(v_at, mask=keep & (dims_v < VALUE_DIM)[None, :], other=0.0)",
            "    acc, total, top = fold_one(acc, total, top, scores, value)",
        ]

    def listings(self) -> list[str]:
        """Host functions (scope, first, tiles) -> (lists, counts) of every listed phase."""
        found = []
        for i, phase in self.listed:
            source = phase.sources[0]
            match dict(self.group.atoms)[source]:
                case Layout(name, block):
                    call = f"listed_by_table(s.inputs[{name!r}], active, first, tiles, ROWS, COLUMNS, {block}, s.n)"
                case Draws(choice, _):
                    call = f"listed_by_draws(s, {source}_g{self.index}_keys, first, tiles, ROWS, COLUMNS, {choice.block})"
                case other:
                    raise AssertionError(f"{other} lists no tiles")
            active = python(phase.active, tensors=True)
            if phase.active == TRUE:
                active = "(I == I) & (J == J)"
            found.append(
                f"def listing_{i}_g{self.index}(s, first, tiles):\n"
                f"    def active(I, J, n):  # noqa: E741\n        return {active}\n\n"
                f"    return {call}"
            )
        return found

    def launch(self) -> list[str]:
        """Host code that launches the kernel for each run of heads."""
        lines = []
        arguments = []
        for name, atom in self.group.atoms:
            match atom:
                case Layout(table, _):
                    lines.append(f"{name}_b, {name}_h, {name}_r, _ = strides(ready[{table!r}])")
                    lines.append(f"{name}_r = ready[{table!r}].shape[3]")
                    arguments += [f"ready[{table!r}].view(torch.uint8)", f"{name}_b", f"{name}_h", f"{name}_r"]
                case Document(ids):
                    arguments += [f"ready[{ids!r}]", f"strides(ready[{ids!r}])[0]"]
        for i, phase in enumerate(self.group.phases):
            match phase:
                case Walk(documents=documents):
                    for ids in documents:
                        bounds = f"ready[{f'{ids}:bounds'!r}]"
                        arguments += [f"{bounds}[0]", f"{bounds}[1]", f"strides({bounds}[0])[0]"]
                case Listed():
                    lines.append(f"list_{i}, count_{i} = listing_{i}_g{self.index}(scope, (n - n_q) // ROWS, tiles)")
                    arguments += [f"list_{i}", f"count_{i}", f"*strides(count_{i})[:2]", f"list_{i}.shape[3]"]
                case Gather(int(selection), _, _):
                    lines.append(f"keys_{i} = chosen[at + {selection}]")
                    arguments += [f"keys_{i}", f"*strides(keys_{i})[:3]", f"keys_{i}.shape[3]"]
        given = "".join(f"{argument}, " for argument in arguments)
        stride, scratch = self.group.stride, "prior"
        where = f"((n - 1) // {stride} // ROWS - (n - n_q) // {stride} // ROWS + 1) * {stride}" if stride > 1 else "tiles"
        if not self.group.last and not self.group.chained:
            lines.append("prior = torch.empty(batch, heads, n_q, value_dim, dtype=torch.float32, device=q.device)")
        target = "out" if self.group.last else scratch
        prior = scratch if self.group.chained else "out"
        for first, run in self.group.runs:
            lines += [
                f"count = sum({first} <= h % {self.group.period} < {first + run} for h in range(heads))",
                "if count:",
                f"    kernel_g{self.index}[({where}, batch * count)](",
                f"        q, k, v, {target}, {prior}, lse, {given}",
                "        *q.stride(), *k.stride(), *v.stride(), n, n_q, heads, sharing, count, scale,",
                f"        {first}, {run}, {self.group.period}, *blocks, ROWS, COLUMNS, **options,",
                "    )",
            ]
        lines.append(f"at += {len(self.group.selections)}")
        return lines


def _slots(atom: Draws) -> int:
    """The draws rounded up to a power of two, as Triton's ranges need."""
    return 1 << (atom.choice.draws - 1).bit_length()


def _scalars(phase: Phase) -> list[Scalar]:
    match phase:
        case Walk(full=full, partial=partial, mask=mask):
            return [mask, *(e for loop in full + partial for e in (loop.start, loop.count, loop.guard))]
        case Listed(_, _, mask) | Gather(_, _, mask):
            return [mask]


def _mask_size(plan: Plan) -> int:
    """Operators and operands of the longest mask of a key tile; a table look-up or a draw counts as 30."""
    tiles = [phase for group in plan.heads for phase in group.phases if not isinstance(phase, Gather)]
    return max((size(phase.mask) + 30 * isinstance(phase, Listed) for phase in tiles), default=0)


def _compacted(plan: Plan) -> bool:
    walks = (phase for group in plan.heads for phase in group.phases if isinstance(phase, Walk))
    return any(walk.view.period > 1 for walk in walks)


def _forward(kernels: list[_Kernel]) -> str:
    """The host function that prepares the inputs and launches the kernels."""
    body = [
        '"""Output (b, h, n_q, d_v) in q\'s dtype and log-sum-exp (b, h, n_q) in float32."""',
        "q, k, v = aligned(q), aligned(k), aligned(v)",
        "batch, heads, n_q, head_dim = q.shape",
        "n, value_dim, sharing = k.shape[2], v.shape[3], heads // k.shape[1]",
        "out = torch.empty(batch, heads, n_q, value_dim, dtype=q.dtype, device=q.device)",
        "lse = torch.empty(batch, heads, n_q, dtype=torch.float32, device=q.device)",
        "if out.numel() == 0:",
        "    return out, lse",
        "ready = prepare(inputs, batch, heads, n, q.device, scores=False)",
        "every = torch.arange(batch, device=q.device).view(-1, 1, 1, 1), torch.arange(heads, device=q.device).view(-1, 1, 1)",
        "scope = Scope(n, *every, ready)",
        "tiles = (n - 1) // ROWS - (n - n_q) // ROWS + 1",
        "wide = lambda d: max(16, triton.next_power_of_2(d))  # noqa: E731",
        "blocks = head_dim, value_dim, wide(head_dim), wide(value_dim)",
        "options = launch_options(max(blocks[2:]), q.dtype.itemsize, generation_of(q.device))",
        "at = 0",
    ]
    for kernel in kernels:
        body += kernel.launch()
    body.append("return out, lse")
    return "def forward(q, k, v, inputs, chosen, scale):\n" + indent("\n".join(body), "    ")


BACKEND = TritonBackend()
