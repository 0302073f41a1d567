"""The host side of emitted Triton files: what allocates, lists tiles and launches the kernels of `triton_program`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from textwrap import indent

from patternc.lower.plan import Draws, Gather, HeadPlan, Listed, Picked, Walk
from patternc.relation import View
from patternc.scalar import FALSE, Scalar, variables
from patternc.terms import Document, Layout

from .picked_program import PickedQueries
from .printer import python
from .triton_program import Forward, Keys, Program, Queries


def listings(program: Program) -> list[str]:
    """Host functions (scope, n_q) -> tensors: the lists of tiles and of pairs, and the tables of draws."""
    keys = isinstance(program, Keys)
    rows, columns = program.tile
    first = "0" if keys else f"(s.n - n_q) // {rows}"
    found = []
    for i, phase in program.listed:
        source, listed = phase.sources[0], "lists(found, {keep})"
        tile, other = "torch.arange(first, first + tiles, device=found.device)[:, None]", "found"
        match dict(program.group.atoms)[source]:
            case Layout(name, block):
                table = f"s.inputs[{name!r}]{'.transpose(-1, -2)' if keys else ''}"
                made = f"tiles_of_table({table}, first, tiles, {rows}, {columns}, {block}, n)"
            case Draws(choice, _) if keys:
                made = f"tiles_of_draws(s, {_keys(program, source)}, 0, -(-n // {columns}), {columns}, {rows}, {choice.block})"
                tile, other = "found", "torch.arange(found.shape[2], device=found.device)[:, None]"
                listed = "turned(once(found, {keep}), tiles)"
            case Draws(choice, _):
                made = f"tiles_of_draws(s, {_keys(program, source)}, first, tiles, {rows}, {columns}, {choice.block})"
            case atom:
                raise AssertionError(f"{atom} lists no tiles")
        conditions = [_tensor_condition(phase.active)]
        if phase.full != FALSE:
            full = _tensor_condition(phase.full)
            conditions = [f"({conditions[0]}) & ({full})", f"({conditions[0]}) & ~({full})"]
        lines = [
            f"def {program.lists}_{i}_g{program.index}(s, n_q):",
            f"    n, first = s.n, {first}",
            f"    tiles = (n - 1) // {rows} + 1 - first",
            f"    found = {made}",
            f"    I, J = {tile}, {other}  # noqa: E741, F841",
            f"    return ({' '.join(f'*{listed.format(keep=keep)},' for keep in conditions)})",
        ]
        found.append("\n".join(lines))
    if program.drawn_from_table and not program.group.picked:
        for name, atom in program.group.atoms:
            if isinstance(atom, Draws):
                blocks = f"torch.arange(-(-s.n // {atom.choice.block}), device=s.head.device)[:, None]"
                table = f"{_keys(program, name)}(s, {blocks}).to(torch.int32).contiguous()"
                found.append(
                    f"def {name}_{program.tables}_g{program.index}(s, n_q):\n    return {table}\n\n\n"
                    f"def {name}_order_g{program.index}(s, n_q):\n"
                    f"    return turned({name}_{program.tables}_g{program.index}(s, n_q)[None, :, s.n - n_q :], s.n)"
                )
    return found


def _tensor_condition(condition: Scalar) -> str:
    """The condition on tiles (I, J) as source of bool tensors."""
    shown = python(condition, tensors=True)
    return shown if variables(condition) & {"I", "J"} else f"(I == I) & (J == J) & ({shown})"


def _keys(program: Program, source: str) -> str:
    return f"{source}_g{program.source_index}_keys"


def forward(programs: list[Forward]) -> str:
    """The function that computes the output."""
    again, repeated = _again(programs)
    body = [
        '"""Output (b, h, n_q, d_v) in q\'s dtype and log-sum-exp (b, h, n_q) in float32."""',
        *again,
        "q, k, v = aligned(q), aligned(k), aligned(v)",
        *_sizes("launch_options", "ROWS, COLUMNS"),
        "out = torch.empty(batch, heads, n_q, value_dim, dtype=q.dtype, device=q.device)",
        "lse = torch.empty(batch, heads, n_q, dtype=torch.float32, device=q.device)",
        "if out.numel() == 0:",
        "    return out, lse",
        *_ready(programs),
        *(["q, scale = (q, scale) if scale >= 0 else (-q, -scale)"] if any(p.always_copied for p in programs) else []),
        "strides_of = *q.stride(), *k.stride(), *v.stride()",
        "case, at = (q.device, q.dtype, q.shape, k.shape, v.shape, strides_of), 0",
    ]
    body += [line for program in programs for line in _pass(program, _output, "out", "")]
    body += repeated
    return "def forward(q, k, v, inputs, chosen, scale):\n" + indent("\n".join([*body, "return out, lse"]), "    ")


def _again(programs: list[Forward]) -> tuple[list[str], list[str]]:
    """Lines before and after a call that is one launch of a grid of tiles, all else being known from its tensors' shapes."""
    program = programs[0]
    special = program.group.share or program.group.picked or program.launched or _packs(program)[1] or _arguments(program)[1]
    if special or len(programs) > 1 or len(program.group.heads) < program.group.period or len(program.group.runs) > 1:
        return [], []
    before = [
        "tensors = q, k, v",
        "known = known_call(q.device, q.dtype, q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride())",
        "if known and not inputs and scale >= 0 and (found := known[0](q, k, v, scale)) is not None:",
        "    return found",
    ]
    used = f"{program.grid}, given, (*tensors, out, lse), scale"
    return before, [f"remember(known, {program.name}, (case, {program.group.runs[0][0]}, {program.own_case}), {used})"]


def _pass(program: Program, lines_of: Callable[[Program], list[str]], target: str, finish: str) -> list[str]:
    """A pass over queries. ``finish`` makes the ``target`` of what a kernel that is repeated leaves."""
    return [*_lists(program), *_suited(program, lines_of, target, finish), f"at += {len(program.group.selections)}"]


def _suited(program: Program, lines_of: Callable[[Program], list[str]], target: str = "", finish: str = "") -> list[str]:
    """The kernel of a pass, or that which the host finds to suit it."""
    lines, instead, group = lines_of(program), program.instead, program.group
    if not instead:
        return lines
    other = [*(lines_of(instead.start) if instead.start else []), *lines_of(instead)]
    if instead.repeated:
        every = [(0, 1)] if len(group.heads) == group.period else [(head, group.period) for head in group.heads]
        other += [f"{target}[:, {first}::{step}] = prior[:, {first}::{step}]{finish}" for first, step in every]
    return [f"if {instead.suits}:", *_within(other), "else:", *_within(lines)]


def _within(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


def _output(program: Program) -> list[str]:
    group = program.group
    body, arguments = _arguments(program)
    target, lse = "out", "lse"
    if group.share:
        lines, shape = _share(program, "heads", "rows", "columns")
        target, lse = f"left_{program.index}", f"left_{program.index}_lse"
        body += [
            *lines,
            f"{target} = torch.empty({shape}, value_dim, dtype=torch.float32, device=q.device)",
            f"{lse} = torch.empty({shape}, dtype=torch.float32, device=q.device)",
        ]
    elif not group.last:
        target = "prior"
        if not group.chained:
            body.append("prior = torch.empty(batch, heads, n_q, value_dim, dtype=torch.float32, device=q.device)")
    prior = "prior" if group.chained else "out"
    lines, packs = _packs(program)
    body += lines
    taken = _taken(program, ("", "_lse")) + packs
    body += _launch(program, f"{_views(program, 'kv')}q, k, v, {target}, {prior}, {lse}, {taken}{arguments}", arguments)
    if group.share:
        body.append(f"{target}, {lse} = merged({target}, {lse})")
    return body


def several(passes: Sequence[HeadPlan]) -> bool:
    """Whether there are several groups of heads."""
    return len({group.heads for group in passes}) > 1 or any(len(group.runs) > 1 for group in passes)


def backward(queries: list[Queries], keys: list[Keys], joint: Keys | None = None) -> str:
    """The function that computes the gradients; by ``joint``, which needs ``start``, where it may."""
    shared = "sharing > 1" if several([program.group for program in keys]) else "False"
    body = [
        '"""Gradients of q, k and v, in their dtypes, from the output, its log-sum-exp and the gradients of both."""',
        "q, k, v, grad, out = aligned(q), aligned(k), aligned(v), aligned(grad_out), out.contiguous()",
        "lse, grad_lse = lse.contiguous(), grad_lse.to(torch.float32).contiguous()",
        *_sizes("gradient_options", "QUERY_ROWS, QUERY_COLUMNS"),
        "dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)",
        "dk = torch.empty(k.shape, dtype=k.dtype, device=q.device)",
        "dv = torch.empty(v.shape, dtype=v.dtype, device=q.device)",
        "if out.numel() == 0 or n == 0:",
        "    return dq.zero_(), dk.zero_(), dv.zero_()",
        *_ready([*queries, *keys]),
        "delta, norm = torch.empty_like(lse), torch.empty_like(lse)",
        "strides_of = *q.stride(), *k.stride(), *v.stride(), *grad.stride()",
        "case, at = (q.device, q.dtype, q.shape, k.shape, v.shape, strides_of, *map(kind, (out, lse, grad_lse))), 0",
    ]
    body += _joint(joint) if joint else []
    body += [line for program in queries for line in _pass(program, _queries, "dq", ".mul_(scale)")]
    body += [
        "rows, columns, at = KEY_ROWS, KEY_COLUMNS, 0",
        "tiles = -(-n // rows)",
        "blocks, generation, options = setting(head_dim, value_dim, q.dtype.itemsize, q.device, rows, gradient_options)",
        f"together = {shared}  # several groups of heads add to one key head",
        "if together:",
        "    sums = [torch.zeros(t.shape, dtype=torch.float32, device=q.device) for t in (dk, dv)]",
    ]
    body += [line for program in keys for line in _key_pass(program)]
    body += ["if together:", "    dk, dv = (sums[0] * scale).to(k.dtype), sums[1].to(v.dtype)", "return dq, dk, dv"]
    name = "def backward(q, k, v, inputs, chosen, scale, out, lse, grad_out, grad_lse):"
    return f"{name}\n" + indent("\n".join(body), "    ")


def _queries(program: Program) -> list[str]:
    group = program.group
    body, arguments = _arguments(program)
    target = "dq"
    if group.share:
        lines, shape = _share(program, "heads", "rows", "columns")
        target = f"left_{program.index}"
        body += [*lines, f"{target} = torch.empty({shape}, head_dim, dtype=torch.float32, device=q.device)"]
    elif not group.last:
        target = "prior"
        if not group.chained:
            body.append("prior = torch.empty(q.shape, dtype=torch.float32, device=q.device)")
    prior = "prior" if group.chained else "dq"
    lines, packs = _packs(program)
    body += lines
    taken = _taken(program, ("",)) + packs
    if isinstance(program, PickedQueries):
        tag, allowed = _tag(program), "members >= 16 and not torch.are_deterministic_algorithms_enabled()"
        body += [
            f"adds = {allowed if _one_by_one(program) else 'False'}",
            f"{tag} = [torch.zeros(t.shape, dtype=torch.float32, device=q.device) for t in (k, v)] if adds else (None, None)",
        ]
        taken = f"*{tag}, {taken}"
    given = f"{_views(program, 'kv')}q, k, v, grad, out, lse, grad_lse, delta, norm, {target}, {prior}, {taken}{arguments}"
    body += _launch(program, given, arguments)
    if group.share:
        body.append(f"{target} = summed({target})")
    return body


def _joint(program: Keys) -> list[str]:
    """All gradients by one kernel, which adds to those of q in memory."""
    assert isinstance(program.start, Queries)
    body, arguments = _arguments(program)
    views, sums = _views(program, program.copied), f"{program.described}(prior, 1, 64, blocks[2] * columns // 128, generation)"
    lines = [
        *_queries(program.start),
        "rows, columns, tiles = JOINT_ROWS, JOINT_COLUMNS, -(-n // JOINT_ROWS)",
        *body,
        *_launch(program, f"{views}{program.given}, dk, dv, {sums}, {arguments}sharing, ", arguments),
        "return scaled(prior, scale, dq), dk, dv",
    ]
    return ["if joins(blocks, n_q == n, JOINT_COLUMNS):", *_within(lines)]


def _key_pass(program: Keys) -> list[str]:
    """A pass over keys; not where that over their queries has added its part."""
    group, lines = program.group, _suited(program, _keys_of)
    if group.picked and _one_by_one(program):
        tag, before = _tag(program), ("prior_k + ", "prior_v + ") if group.chained else ("", "")
        lines = [
            f"if {tag}[0] is None:",
            *_within(lines),
            "elif together:",
            f"    sums[0].add_({tag}[0]), sums[1].add_({tag}[1])",
            "else:",
            f"    dk, dv = (({before[0]}{tag}[0]) * scale).to(k.dtype), ({before[1]}{tag}[1]).to(v.dtype)",
        ]
    return [*_lists(program), *lines, f"at += {len(group.selections)}"]


def _keys_of(program: Program) -> list[str]:
    assert isinstance(program, Keys)
    group = program.group
    body, arguments = _arguments(program)
    targets = f"*(sums if together else ({'dk, dv' if group.last else 'prior_k, prior_v'}))"
    if group.share:
        lines, shape = _share(program, "k.shape[1]", "rows", "columns")
        targets = f"left_{program.index}_dk, left_{program.index}_dv"
        body += [
            *lines,
            f"left_{program.index}_dk = torch.empty({shape}, head_dim, dtype=torch.float32, device=q.device)",
            f"left_{program.index}_dv = torch.empty({shape}, value_dim, dtype=torch.float32, device=q.device)",
        ]
    elif not group.last and not group.chained:
        body += [
            "prior_k = torch.empty(k.shape, dtype=torch.float32, device=q.device)",
            "prior_v = torch.empty(v.shape, dtype=torch.float32, device=q.device)",
        ]
    prior = f"*(sums if together else ({'prior_k, prior_v' if group.chained else 'dk, dv'}))"
    taken = _taken(program, ("_dk", "_dv"))
    lines, views = _row_views(program)
    given = f"{views}{program.given}, {targets}, {prior}, {taken}{arguments}sharing, "
    body += lines
    partial = "n_q < n, " if "PREFIX" in program.constants else ""
    carry = "True" if group.chained else "False" if group.share else "together"
    last = "not together" if group.last else "False"
    body += _launch(program, given, arguments, f", {partial}{carry}, {last}")
    if group.share:
        body += [f"left_{program.index}{end} = summed(left_{program.index}{end})" for end in ("_dk", "_dv")]
    return body


def _tag(program: Program) -> str:
    """What the gradients of keys and values are called that the program of a list's queries has added up."""
    return f"added_{program.group.heads[0]}"


def _one_by_one(program: Program) -> bool:
    """Whether a pass walks lists of single keys."""
    return any(isinstance(phase, Picked) and phase.unit == 1 for phase in program.group.phases)


def _views(program: Program, tensors: str) -> str:
    """Views of the tensors whose tiles a pass walks, for the copy engine."""
    if not program.neighbours and not program.always_copied:
        return "None, None, "
    stride, (blocks, _, columns) = program.group.stride, program.sizes
    names = {"q": "q", "k": "k", "v": "v", "g": "grad"}
    some = "generation" if "k" in tensors or stride == 1 else "generation * (n_q == n)"
    wide = {"q": f"{blocks}[2]", "k": f"{blocks}[2]", "v": f"{blocks}[3]", "g": f"{blocks}[3]"}
    rows = {t: program.copied_rows.get(t, columns) for t in tensors}
    return "".join(f"{program.described}({names[t]}, {stride}, {rows[t]}, {wide[t]}, {some}), " for t in tensors)


def _row_views(program: Keys) -> tuple[list[str], str]:
    """Views of what a pass over keys walks, and of its rows if it copies those: rows a few of every period are packed first."""
    if not program.packs_rows:
        return [], _views(program, program.copied)
    lines, rows = _packed_as("rows_k", "rows_v", program, program.group.rows)
    return lines, f"{_views(program, 'qg')}{rows}"


def _packed_as(k: str, v: str, program: Program, view: View) -> tuple[list[str], str]:
    """Lines that pack keys and values of a view, under names, and their views for the copy engine."""
    lines = [
        f"keys_of = kept({_packing(view)}, n, n_q, heads, q.device)",
        f"{k}, {v} = aligned(k.index_select(2, keys_of)), aligned(v.index_select(2, keys_of))",
    ]
    wide = (k, "blocks[2]"), (v, "blocks[3]")
    return lines, "".join(f"{program.described}({t}, 1, columns, {block}, generation), " for t, block in wide)


def _packing(view: View) -> str:
    """The host function that lists the keys of a view."""
    return f"packed_{view.period}_{view.width}_{view.first}"


def _sizes(options: str, tile: str) -> list[str]:
    return [
        "batch, heads, n_q, head_dim = q.shape",
        "n, value_dim, sharing = k.shape[2], v.shape[3], heads // k.shape[1]",
        f"rows, columns = {tile}",
        "tiles = (n - 1) // rows - (n - n_q) // rows + 1",
        f"blocks, generation, options = setting(head_dim, value_dim, q.dtype.itemsize, q.device, rows, {options})",
    ]


def _ready(programs: list[Program] | list[Forward]) -> list[str]:
    """The runtime inputs, and the scope of host functions, where something needs them."""
    lines = ["ready = prepare(inputs, batch, heads, n, q.device, scores=False)"]
    if any(isinstance(atom, Layout) for program in programs for _, atom in program.group.atoms):
        every = "torch.arange(batch, device=q.device).view(-1, 1, 1, 1), torch.arange(heads, device=q.device).view(-1, 1, 1)"
        lines.append(f"scope = Scope(n, {every}, ready)")
    return lines


def _packs(program: Program) -> tuple[list[str], str]:
    """Lines that pack keys and values for the views that need it, and the arguments."""
    lines, arguments = [], ""
    for i, view in enumerate(program.packed):
        more, views = _packed_as(f"k{i}", f"v{i}", program, view)
        lines += more
        arguments += f"{views}k{i}, v{i}, k{i}.stride(2), v{i}.stride(2), k{i}.shape[2], "
    return lines, arguments


def packings(programs: list[Program]) -> list[str]:
    """Host functions (scope, n_q) -> the keys of a view, ascending."""
    rows = [replace(program.group.rows, packs_rows=False) for program in programs if program.packs_rows]
    views = dict.fromkeys([*(view for program in programs for view in program.packed), *rows])
    return [
        f"def {_packing(view)}(s, n_q):\n"
        f"    u = torch.arange(-(-s.n // {view.period}) * {view.width}, device=s.head.device)\n"
        f"    keys = {python(view.key, tensors=True)}\n"
        f"    return keys[keys < s.n]"
        for view in views
    ]


def _share(program: Program, heads: str, rows: str, columns: str) -> tuple[list[str], str]:
    """Lines that set ``count_of`` row tiles and ``splits`` for a share, and the shape of what it leaves."""
    group = program.group
    if group.rows.few:
        counts = " + ".join(f"max({python(loop.count)}, 0)" for loop in group.visits)
    else:
        counts = f"-(-(-(-n // {group.rows.period}) * {group.rows.width}) // {rows})"
    limits = f"{program.most}, {program.least}"
    lines = [f"count_of = {counts}", f"splits = splits_of(count_of * batch * {heads}, n // {columns}, {limits})"]
    return lines, f"splits, batch, {heads}, count_of * {rows}"


def _taken(program: Program, ends: tuple[str, ...]) -> str:
    """What shares have left, as arguments: the tensors, and then their numbers of rows."""
    indices = _share_indices(program)
    tensors = [f"left_{i}{end}" for i in indices for end in ends]
    return "".join(f"{x}, " for x in [*tensors, *(f"left_{i}{ends[0]}.shape[2]" for i in indices)])


def _share_indices(program: Program) -> range:
    """The passes before this one that are shares of the same heads."""
    return range(program.index - len(program.shares), program.index)


def _launch(program: Program, given: str, extra: str, flags: str = "") -> list[str]:
    """Host code that launches a kernel for each run of heads; ``extra`` are the arguments that q, k and v do not determine."""
    more = ", ".join(filter(None, (f"*map(kind, ({extra}))" if extra else "", program.own_case)))
    own_lengths = "".join(f"{name}, " for name in program.own_lengths)
    group, lines = program.group, []
    sharing, run_heads = ("", "count if sharing == 1 else k.shape[1]") if isinstance(program, Keys) else ("sharing, ", "count")
    stride, high = group.stride, f"batch * ({run_heads})"
    if program.launched:
        where, high = program.launched
    elif group.share:
        where = "count_of * splits"
    elif stride > 1 and isinstance(program, Keys):
        where = f"((n - 1) // {stride} // rows + 1) * {stride}"
    elif stride > 1:
        where = f"((n - 1) // {stride} // rows - (n - n_q) // {stride} // rows + 1) * {stride}"
    else:
        where = "tiles"
    splits, (blocks, rows, columns) = "splits" if group.share else "1", program.sizes
    strides_of = "*strides_of, " if program.strides else ""
    for first, run in group.runs:
        call = [
            f"width, height = {where}, {high}",
            f"given = ({given}",
            f"    {strides_of}n, n_q, heads, {sharing}{run_heads}, {splits}, scale, {own_lengths}",
            f"    {first}, {run}, {group.period}, *{blocks}, {rows}, {columns}{flags}{program.own_constants})",
            f"launch({program.name}, {program.grid}, (case, {first}, {more}), given, {program.options})",
        ]
        if len(group.heads) == group.period:
            lines += ["count = heads", *call]
        else:
            count = f"count = sum({first} <= h % {group.period} < {first + run} for h in range(heads))"
            lines += [count, "if count:", *_within(call)]
    return [*program.repeated, *_within(lines)] if program.repeated else lines


def _arguments(program: Program) -> tuple[list[str], str]:
    """What atoms and phases need: lines that prepare it, and the arguments."""
    lines, arguments = _sets(program), []

    def kept(function: str) -> str:
        return f"kept({function}_g{program.index}, n, n_q, heads, q.device)"

    for name, atom in program.atoms:
        match atom:
            case Layout(table, _):
                lines.append(f"{name}_b, {name}_h, {name}_r, _ = strides(ready[{table!r}])")
                lines.append(f"{name}_r = ready[{table!r}].shape[3]")
                arguments += [f"ready[{table!r}].view(torch.uint8)", f"{name}_b", f"{name}_h", f"{name}_r"]
            case Document(ids):
                arguments += [f"ready[{ids!r}]", f"strides(ready[{ids!r}])[0]"]
            case Draws() if program.drawn_from_table:
                lines.append(f"{name}_drawn = {kept(f'{name}_{program.tables}')}")
                arguments += [f"{name}_drawn", f"{name}_drawn[0].numel()"]
    for i, phase in enumerate(program.group.phases):
        match phase:
            case Walk(documents=documents):
                for ids in documents:
                    bounds = f"ready[{f'{ids}:bounds'!r}]"
                    arguments += [f"{bounds}[0]", f"{bounds}[1]", f"strides({bounds}[0])[0]"]
            case Listed(sources=sources):
                function = f"{program.lists}_{i}"
                by_table = isinstance(dict(program.group.atoms)[sources[0]], Layout)
                lines.append(f"lists_{i} = {f'{function}_g{program.index}(scope, n_q)' if by_table else kept(function)}")
                arguments += [f"*lists_{i}", f"*strides(lists_{i}[2])[:2]"]
            case Gather() if isinstance(program, Keys):
                lines.append(f"order_{i}, begin_{i}, count_{i} = {kept(f'{phase.drawn}_order')}")
                arguments += [f"order_{i}", f"begin_{i}", f"count_{i}", f"*strides(count_{i})[:2]"]
            case Picked(unit=unit) if isinstance(program, Keys):
                lines.append(f"order_{i}, begin_{i}, count_{i} = turned(sets_of(keys_{i}, heads, members), -(-n // {unit}))")
                arguments += [f"order_{i}", f"begin_{i}", f"count_{i}", f"*strides(count_{i})[:2]"]
            case Picked() if program.repeated:
                lines.append(f"keys_{i} = sets_of(keys_{i}, heads, members)")
                of_each = [f"{what}_{i}, *strides({what}_{i})[:2]" for what in ("count", "block")]
                arguments += [f"order_{i}", f"begin_{i}", f"before_{i}", *of_each]
            case Picked():
                lines += [
                    f"keys_{i} = sets_of(keys_{i}, heads, members)",
                    f"count_{i} = (keys_{i} >= 0).sum(-1, dtype=torch.int32)",
                ]
                arguments += [f"keys_{i}", f"*strides(keys_{i})[:3]", f"count_{i}", f"*strides(count_{i})[:2]"]
    return lines, "".join(f"{argument}, " for argument in arguments)


def _lists(program: Program) -> list[str]:
    """The lists that a pass walks, and how many heads share each."""
    picked = [(i, phase) for i, phase in enumerate(program.group.phases) if isinstance(phase, Picked)]
    if not picked:
        return []
    shared = " and ".join(f"keys_{i}.shape[1] <= k.shape[1]" for i, phase in picked if not phase.shared)
    return [
        *(f"keys_{i} = chosen[at + {phase.selection}]" for i, phase in picked),
        f"members = {f'sharing if {shared} else 1' if shared else 'sharing'}",
    ]


def _sets(program: Program) -> list[str]:
    """The sizes of the tiles of a pass over lists."""
    if not program.rows_for:
        return []
    same = "" if isinstance(program, Keys) else ", same"
    made = f"{program.rows_for}, q.dtype.itemsize, blocks, {program.kind!r}, generation{same}"
    return [
        *(["same = is_same(k, v, blocks)"] if same else []),
        f"own_blocks, rest, own_rows, own_columns, own_options = picked_setting({made})",
    ]
