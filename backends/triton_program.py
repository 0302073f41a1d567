"""Kernels as Triton source: one pass of a plan over tiles of rows, for the output or for a gradient.

A program works on one tile of *rows* and walks tiles of the other side: queries walk keys for the output and for the
gradient of q, keys walk queries for the gradients of k and v. Loops, masks, atoms and views are printed the same way for
all three; `Forward`, `Queries` and `Keys` say what is loaded, computed at each step, and stored.
"""

from __future__ import annotations

from textwrap import indent

from patternc.lower.plan import Atom, Draws, Gather, HeadPlan, Listed, Phase, Picked, Tile, Walk
from patternc.relation import Loop, View
from patternc.scalar import FALSE, TRUE, Scalar, Var, conjuncts, op, variables
from patternc.terms import Document, Layout

from .printer import POSITION_LIMIT, is_wide, triton

_PACKED = ("k{}_view", "v{}_view", "k{}_ptr", "v{}_ptr", "stride_k{}", "stride_v{}", "packed_{}")
"""What a kernel is given of packed keys and values: descriptors, pointers, row strides, and their number."""


class Program:
    """One kernel: a pass of a plan, for one of its heads' groups."""

    kind = ""
    lists = "row_lists"
    """The host functions that list the tiles of its rows."""
    tile = "ROWS", "COLUMNS"
    """The host's names of its tile shape."""
    pointers: tuple[str, ...] = ()
    strides: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ("n", "n_q", "heads", "sharing", "run_heads", "splits")
    constants: tuple[str, ...] = ("FIRST", "RUN", "PERIOD", "HEAD_DIM", "VALUE_DIM", "BLOCK_D", "BLOCK_V", "ROWS", "COLUMNS")

    def __init__(self, index: int, group: HeadPlan, tile: Tile, shares: tuple[HeadPlan, ...], source: int):
        self.index, self.group = index, group
        self.shares = () if group.rows.stride > 1 or group.share or group.picked else shares
        self.source_index = source
        """The index of the group whose generated functions know the atoms."""
        size = min(tile.rows, tile.columns)
        self.wide = any(is_wide(*_scalars(phase), tile=size) for phase in group.phases) or any(
            is_wide(*(e for loop in atom.loops for e in (loop.start, loop.count)))
            for _, atom in self.atoms
            if isinstance(atom, Draws)
        )

    @property
    def name(self) -> str:
        return f"{self.kind}_g{self.index}"

    @property
    def packed(self) -> list[View]:
        """The views whose keys the host packs first: they are a few of every period."""
        return []

    @property
    def packs_rows(self) -> bool:
        """Whether the host packs keys that are this program's rows."""
        return False

    @property
    def neighbours(self) -> bool:
        """Whether it loads tiles of neighbours in some view, which the copy engine can do."""
        phases = self.group.phases
        views = [phase.view for phase in phases if isinstance(phase, Walk)]
        return any(view.key == Var("u") or view.stride > 1 for view in views) or any(isinstance(p, Listed) for p in phases)

    @property
    def atoms(self) -> list[tuple[str, Atom]]:
        """The atoms that the kernel itself looks at."""
        used: set[str | int] = set().union(*(variables(phase.mask) for phase in self.group.phases))
        if not self.drawn_from_table:
            used |= {phase.source for phase in self.group.phases if isinstance(phase, Gather)}
        return [(name, atom) for name, atom in self.group.atoms if name in used]

    @property
    def listed(self) -> list[tuple[int, Listed]]:
        return [(i, phase) for i, phase in enumerate(self.group.phases) if isinstance(phase, Listed)]

    def variants(self) -> list[Program]:
        """This kernel, that which may stand for it, and what that one needs."""
        return [self, *(one for other in (self.instead, self.start) if other for one in other.variants())]

    def source(self) -> str:
        """The kernel."""
        parameters, unspecialised = self._signature()
        signature = ",\n    ".join([", ".join(parameters), ", ".join(f"{c}: tl.constexpr" for c in self.constants)])
        body = [*self._tile(), *self._setup(), *self._body(), *self._finish()]
        head = f"@triton.jit(do_not_specialize={unspecialised!r})\ndef {self.name}(\n    {signature}\n):\n"
        return head + indent("\n".join(body), "    ")

    def _signature(self) -> tuple[list[str], list[str]]:
        """The parameters that are not constants, and those for whose values Triton must not compile anew."""
        packs = [name.format(i) for i in range(len(self.packed)) for name in _PACKED]
        own = [*self._share_parameters(), *packs, *self._parameters()]
        unspecialised = [
            *self.lengths,
            *self.own_lengths,
            *(p for p in self._parameters() if p.endswith(("_b", "_h", "_r", "_i", "_q", "_w"))),
            *(p for p in packs if p.startswith("packed_")),
            *(f"share_{i}_rows" for i in range(len(self.shares))),
        ]
        return [*self.pointers, *own, *self.strides, *self.lengths, "scale", *self.own_lengths], unspecialised

    def _parameters(self) -> list[str]:
        """The parameters that atoms and phases need."""
        found = []
        for name, atom in self.atoms:
            if isinstance(atom, Layout):
                found += [f"{name}_ptr", f"{name}_b", f"{name}_h", f"{name}_r"]
            elif isinstance(atom, Document):
                found += [f"{name}_ptr", f"{name}_b"]
            elif self.drawn_from_table:
                found += [f"{name}_keys", f"{name}_h"]
        for i, phase in enumerate(self.group.phases):
            match phase:
                case Walk(documents=documents):
                    found += [p for j in range(len(documents)) for p in (f"first_{i}_{j}", f"end_{i}_{j}", f"first_{i}_{j}_b")]
                case Listed():
                    found += [f"{part}_{i}{kind}" for kind, _ in kinds(phase) for part in ("list", "begin", "count")]
                    found += [f"list_{i}_b", f"list_{i}_h"]
                case Gather() | Picked():
                    found += self._key_parameters(i)
        return found

    def _share_parameters(self) -> list[str]:
        return [p for i in range(len(self.shares)) for p in self._share_pointers(i)] + [
            f"share_{i}_rows" for i in range(len(self.shares))
        ]

    # What the kinds say.

    drawn_from_table = False
    """Whether it looks draws up in a table, made by the host function that ``tables`` names, or draws again."""
    tables = "key_table"
    _row, _column = "q", "k"
    _last_first = True
    grid, options, own_constants, own_case = "(width, height, 1)", "options", "", ""
    """Host expressions: the grid, what the launch says of warps, and for this kind of kernel alone the constants that it takes
    and what else they depend on."""
    instead: Program | None = None
    """The kernel that does the same where the host finds that it ``suits``."""
    suits = ""
    """Host expression: whether a kernel is to be taken instead of another."""
    start: Program | None = None
    """The kernel that leaves what this one goes on from, where no pass before has."""
    launched: tuple[str, str] | None = None
    """Host expressions: how wide and high the grid is, if not a program for each tile of rows and each head."""
    repeated: tuple[str, ...] = ()
    """Host code: a loop over launches, as far as to the launch."""
    rows_for: str | int = ""
    """Host expression: how many rows belong together, where that decides on the sizes of a tile."""
    sizes = "blocks", "rows", "columns"
    """The host's names of the head dims, as they are and padded, and of the sizes of a tile."""
    own_lengths: tuple[str, ...] = ()
    """Lengths that only this kind of kernel takes, by the names that the host has for them too."""
    most = "1056"
    """How many programs the work on a few long rows is split among: some for each processor of a large GPU."""
    least = 1
    """In how many parts long rows are split where programs take up one after another."""
    described = "described"
    """The host function that makes views for the copy engine; ``always_copied`` kernels load tiles in no other way.

    They also take positive scales only.
    """
    always_copied = False
    copied_rows: dict[str, str] = {}  # noqa: RUF012 - nothing changes it
    """Host expressions: how many rows of a tensor are loaded at a time, where that is not the tile's columns."""
    _program = "tl.program_id(0)", "tl.program_id(1)"
    _programs = "tl.num_programs(0)", "tl.num_programs(1)"

    def _share_pointers(self, i: int) -> list[str]:
        raise NotImplementedError

    def _key_parameters(self, i: int) -> list[str]:
        raise NotImplementedError

    def _setup(self) -> list[str]:
        raise NotImplementedError

    def _body(self) -> list[str]:
        return [line for i, phase in enumerate(self.group.phases) for line in self._phase(i, phase)]

    def _finish(self) -> list[str]:
        raise NotImplementedError

    def _step(self, mask: Scalar | None, view: View) -> list[str]:
        raise NotImplementedError

    def _gather(self, i: int, phase: Gather) -> list[str]:
        raise NotImplementedError

    # Rows.

    def _tile(self) -> list[str]:
        """The rows of this program: a tile of them, its index I, and whose turn it is if several share the work."""
        wide = ".to(tl.int64)" if self.wide else ""
        return [
            *self._place(),
            "lanes = tl.arange(0, ROWS)",
            f"rows = {self._positions('tile * ROWS + tl.arange(0, ROWS)')}",
            f"{self._row} = rows[:, None]{wide}",
        ]

    def _place(self) -> list[str]:
        """The tile of this program, and its head."""
        rows, first = self.group.rows, self._first_tile
        (at, head), (width, _) = self._program, self._programs
        lines = [f"turn = {at} % splits", f"place = {at} // splits"] if self.group.share else []
        if rows.few:
            lines.append("tile = 0")
            before = "0"
            for loop in self.group.visits:
                names = {"n": "n"}
                start, count = triton(loop.start, names), f"tl.maximum({triton(loop.count, names)}, 0)"
                lines.append(f"tile = tl.where(place >= {before}, {start} + {loop.step} * (place - ({before})), tile)")
                before = f"{before} + {count}"
        elif rows.packs_rows:
            lines.append("tile = place")
        elif rows.stride > 1:
            lines.append(f"r = {at} % {rows.stride}")
            turn = f"{at} // {rows.stride}"
            last = f"{width} // {rows.stride} - 1 - {turn}"
            lines.append(f"tile = {first}{last if self._last_first else turn}")
        else:
            lines.append(f"tile = {first}{f'{width} - 1 - {at}' if self._last_first else at}")
        return [
            *lines,
            "first_row = tile * ROWS",
            f"batch = {head} // run_heads",
            f"slot = {head} % run_heads",
            "b64 = batch.to(tl.int64)",
            f"I = tile{'.to(tl.int64)' if self.wide else ''}  # noqa: E741",
        ]

    def _positions(self, index: str) -> str:
        """The rows at some indices of the view."""
        rows = self.group.rows
        return index if rows.rows == View() or rows.few else triton(rows.query, {"t": f"({index})"})

    @property
    def _first_tile(self) -> str:
        stride = self.group.rows.stride
        return f"(n - n_q) // {stride} // ROWS + " if stride > 1 else "(n - n_q) // ROWS + "

    def _left_at(self, head: str, heads: str) -> str:
        """Where this program, a part of a share, leaves what its rows have."""
        width, height = self._programs
        first = f"((turn * ({height} // run_heads) + b64) * {heads} + {head}) * ({width} // splits * ROWS)"
        return f"{first} + place * ROWS + lanes"

    def _shared_places(self, i: int) -> list[str]:
        """Where each row is found in what the i-th share left: ``shared`` (ROWS,), for the rows that ``held`` names."""
        share = self.shares[i]
        if share.rows.few:
            lines, before = ["place = -1"], "0"
            for loop in share.visits:
                start, count = triton(loop.start), f"tl.maximum({triton(loop.count)}, 0)"
                offset = f"(tile - ({start}))"
                inside = f"({offset} >= 0) & ({offset} < {loop.step} * ({count})) & ({offset} % {loop.step} == 0)"
                lines.append(f"place = tl.where({inside}, {before} + {offset} // {loop.step}, place).to(tl.int32)")
                before = f"{before} + {count}"
            return [*lines, "shared = place * ROWS + lanes", "held = (lanes >= 0) & (place >= 0)"]
        view = share.rows
        shift = op("-", Var("rows"), view.first)
        index = op("+", op("*", op("//", shift, view.period), view.width), op("%", shift, view.period))
        within = op("<", op("%", shift, view.period), view.width)
        return [f"shared = {triton(index)}", f"held = (rows >= {view.first}) & ({triton(within)})"]

    # Atoms and masks.

    def _atom_setup(self, name: str, atom: Atom) -> list[str]:
        match atom:
            case Layout():
                return [f"{name}_base = {name}_ptr + b64 * {name}_b + head.to(tl.int64) * {name}_h"]
            case Document():
                own = f"{name}_own = tl.load({name}_base + tl.minimum(rows, n - 1))[:, None]"
                return [f"{name}_base = {name}_ptr + b64 * {name}_b", own]
            case Draws(choice, _):
                if self.drawn_from_table:
                    return [f"{name}_base = {name}_keys + head.to(tl.int64) * {name}_h"]
                return [f"{name}_keys = {name}_g{self.source_index}_drawn(rows // {choice.block}, head, n, ROWS)"]

    def _atom(self, name: str, atom: Atom) -> str:
        """Whether each pair holds, q and k within the sequence."""
        match atom:
            case Layout(_, block):
                return f"(tl.load({name}_base + (safe_q // {block}).to(tl.int64) * {name}_r + safe_k // {block}) != 0)"
            case Document():
                return f"({name}_own == tl.load({name}_base + safe_{self._column}))"
            case Draws(choice, _):
                blocks = f"k // {choice.block}"
                if self.drawn_from_table:
                    return f"member_of_table({name}_base, safe_q // {choice.block}, {blocks}, {choice.draws})"
                return f"member({name}_keys, {blocks}, {choice.draws}, {slots(atom)})"

    def _mask(self, mask: Scalar) -> str:
        return triton(mask, {name: self._atom(name, atom) for name, atom in self.group.atoms})

    def _masked(self, mask: Scalar, columns: str) -> list[str]:
        """Scores with -inf where the mask does not hold; ``columns`` are the positions of the other side."""
        column = f"{self._column} = ({columns})[None, :]{'.to(tl.int64)' if self.wide else ''}"
        return [
            column,
            "safe_q, safe_k = tl.minimum(q, n - 1), tl.minimum(k, n - 1)",
            f"scores = tl.where({self._inside(mask)}({self._mask(mask)}), scores, float('-inf'))",
        ]

    def _inside(self, mask: Scalar) -> str:
        """That a column lies within the sequence, unless the mask implies it for every row that does."""
        implied = self._column == "k" and op("<=", Var("k"), Var("q")) in conjuncts(mask)
        return "" if implied else f"({self._column} < n) & "

    # Phases.

    def _phase(self, i: int, phase: Phase) -> list[str]:
        match phase:
            case Walk(full, partial, mask, _, documents, view):
                lines = [f"# phase {i}: tiles in closed form"]
                inner, outer = [(loop, "", "") for loop in full], [(loop, "", "") for loop in partial]
                if documents:
                    lines += self._clip(i, len(documents))
                    inner = [(loop, "low_inside", "high_inside") for loop in full]
                    outer = [(loop, "low", "high") for loop in partial]
                    for loop in full:
                        outer += [(loop, "low", "low_inside"), (loop, "high_inside", "high")]
                if inner:
                    lines += self._walk(f"{i}f", inner, None, view)
                if outer:
                    lines += self._walk(f"{i}p", outer, mask, view)
                return lines
            case Listed():
                at = f"at_{i} = b64 * list_{i}_b + head.to(tl.int64) * list_{i}_h + {self._listed_tile}"
                lines = [f"# phase {i}: tiles listed at run time", at]
                for kind, wanted in kinds(phase):
                    lines += [
                        f"list_at = list_{i}{kind} + tl.load(begin_{i}{kind} + at_{i})",
                        f"for t in range(0, tl.load(count_{i}{kind} + at_{i})):",
                        "    J = tl.load(list_at + t)",
                        *("    " + line for line in self._step(wanted, View())),
                    ]
                return lines
            case Gather():
                return [f"# phase {i}: pairs one by one", *self._gather(i, phase)]
            case Picked():
                raise AssertionError("lists of selections have kernels of their own")

    _listed_tile = "tile - (n - n_q) // ROWS"
    _lowest = "n - n_q"

    def _clip(self, i: int, documents: int) -> list[str]:
        """The range of tiles that the documents of these rows reach, and that of the tiles within one document."""
        lines = ["low, low_inside = 0, 0", "high, high_inside = n, n"]
        for j in range(documents):
            first, end = (f"{side}_{i}_{j} + b64 * first_{i}_{j}_b" for side in ("first", "end"))
            top, bottom = f"tl.maximum(first_row, {self._lowest})", "tl.minimum(first_row + ROWS, n) - 1"
            lines += [
                f"low = tl.maximum(low, tl.load({first} + {top}))",
                f"high = tl.minimum(high, tl.load({end} + {bottom}))",
                f"low_inside = tl.maximum(low_inside, tl.load({first} + {bottom}))",
                f"high_inside = tl.minimum(high_inside, tl.load({end} + {top}))",
            ]
        return [
            *lines,
            "low, high = low // COLUMNS, (high + COLUMNS - 1) // COLUMNS",
            "low_inside = tl.minimum((low_inside + COLUMNS - 1) // COLUMNS, high)",
            "high_inside = tl.maximum(tl.minimum(high_inside // COLUMNS, high), low_inside)",
        ]

    def _walk(self, key: str, walked: list[tuple[Loop, str, str]], mask: Scalar | None, view: View) -> list[str]:
        """Loops, each with the names of the lowest tile and of the one after the last, if they are clipped."""
        lines = self._counts(key, walked)
        loops = [loop for loop, _, _ in walked]
        total = " + ".join(f"count_{key}{j}" for j in range(len(loops)))
        lines += self._range(key, total)
        lines += ["    " + line for line in self._nth(key, loops)]
        step = self._step(mask, view)
        guards = [self._guard(key, j, loops) for j in range(len(loops)) if loops[j].guard != TRUE]
        if guards:
            lines += [f"    if {' & '.join(guards)}:", *("        " + line for line in step)]
        else:
            lines += ["    " + line for line in step]
        return lines

    def _counts(self, key: str, walked: list[tuple[Loop, str, str]]) -> list[str]:
        """Where the loops start, and their lengths."""
        lines = []
        for j, (loop, low, high) in enumerate(walked):
            lines += [f"start_{key}{j} = {triton(loop.start)}", f"count_{key}{j} = tl.maximum({triton(loop.count)}, 0)"]
            if low:
                lines += [
                    f"skip_{key}{j} = tl.maximum({low} - start_{key}{j} + {loop.step - 1}, 0) // {loop.step}",
                    f"last_{key}{j} = div({high} - 1 - start_{key}{j}, {loop.step}) + 1",
                    f"count_{key}{j} = tl.maximum(tl.minimum(count_{key}{j}, last_{key}{j}) - skip_{key}{j}, 0)",
                    f"start_{key}{j} = start_{key}{j} + {loop.step} * skip_{key}{j}",
                ]
        return lines

    def _nth(self, key: str, loops: list[Loop], first: int = 0) -> list[str]:
        """J, the t-th tile of all loops, which is none of those before the ``first``."""
        lines, before = [], " + ".join(f"count_{key}{j}" for j in range(first))
        for j, loop in enumerate(loops[first:], first):
            offset = f"t - ({before})" if before else "t"
            value = f"start_{key}{j} + {loop.step} * ({offset})"
            lines.append(f"J = {value}" if j == first else f"J = tl.where(t >= {before}, {value}, J)")
            before = f"{before} + count_{key}{j}" if before else f"count_{key}{j}"
        return lines

    def _range(self, key: str, total: str) -> list[str]:
        """The loop over ``total`` tiles, or over this program's share of them.

        A loop that surely runs, as the compiler could tell from a constant or a sum with one, loses its overlap of matrix
        products: the assembler finds their accumulators set up too late and serialises them (C7515). Hence the condition.
        """
        if not self.group.share:
            return [f"for t in range(0, tl.where(n > 0, {total}, 0)):"]
        return [
            f"total_{key} = tl.where(n > 0, {total}, 0).to(tl.int64)",
            f"from_{key} = (total_{key} * turn // splits).to(tl.int32)",
            f"for t in range(from_{key}, (total_{key} * (turn + 1) // splits).to(tl.int32)):",
        ]

    def _guard(self, key: str, j: int, loops: list[Loop]) -> str:
        """Whether step t is not in loop j, or the loop's guard holds for its tile."""
        begin = " + ".join(["0", *(f"count_{key}{m}" for m in range(j))])
        return f"((t < {begin}) | (t >= {begin} + count_{key}{j}) | ({triton(loops[j].guard, {'x': 'J'})}))"

    def _columns(self, view: View) -> list[str]:
        """The positions of a tile of the other side."""
        return [
            "first = (J * COLUMNS).to(tl.int32)",
            f"columns = {triton(view.key, {'u': '(first + tl.arange(0, COLUMNS))'})}",
        ]

    def _load(self, tensor: str, head: str, view: View, shift: str, bound: str) -> str:
        """A tile of the other side of ``tensor`` (its letter); its positions are less by ``shift``."""
        if view in self.packed:
            i = self.packed.index(view)
            wide, block = ("VALUE_DIM", "BLOCK_V") if tensor == "v" else ("HEAD_DIM", "BLOCK_D")
            return (
                f"load_tile({tensor}{i}_view, batch, {head}, 0, first, {tensor}{i}_base, first, stride_{tensor}{i}, 1, "
                f"packed_{i}, COLUMNS, {wide}, {block}, {bound})"
            )
        residue = triton(op("%", op("-", Var("r"), view.offset), view.stride)) if view.stride > 1 else "0"
        regular = view.key == Var("u") or view.stride > 1
        place = "first" if view.key == Var("u") else "columns"
        wide, block = ("VALUE_DIM", "BLOCK_V") if tensor in "vg" else ("HEAD_DIM", "BLOCK_D")
        engine = f"{tensor}_view, batch, {head}, {residue}, first{shift}" if regular else "None, 0, 0, 0, 0"
        limit = "n_q" if shift else "n"
        return (
            f"load_tile({engine}, {tensor}_base, {place}{shift}, stride_{tensor}n, stride_{tensor}d, {limit}, "
            f"COLUMNS, {wide}, {block}, {bound})"
        )


class _ByQuery(Program):
    """Rows are queries, and keys are walked."""

    strides = tuple(f"stride_{t}{axis}" for t in "qkv" for axis in "bhnd")

    @property
    def packed(self) -> list[View]:
        views = [phase.view for phase in self.group.phases if isinstance(phase, Walk)]
        return list(dict.fromkeys(view for view in views if view.period > 1 and not view.packs_rows))

    def _head(self) -> list[str]:
        return [
            "head = slot // RUN * PERIOD + FIRST + slot % RUN",
            "valid_row = (rows >= n - n_q) & (rows < n)",
            "dims = tl.arange(0, BLOCK_D)",
            "dims_v = tl.arange(0, BLOCK_V)",
            "kv = head // sharing",
            "k_base = k_ptr + b64 * stride_kb + kv.to(tl.int64) * stride_kh",
            "v_base = v_ptr + b64 * stride_vb + kv.to(tl.int64) * stride_vh",
            *(
                f"{t}{i}_base = {t}{i}_ptr + (b64 * (heads // sharing) + kv) * packed_{i} * stride_{t}{i}"
                for i in range(len(self.packed))
                for t in "kv"
            ),
            "q_base = q_ptr + b64 * stride_qb + head.to(tl.int64) * stride_qh",
            "q_at = q_base + (rows - (n - n_q)).to(tl.int64)[:, None] * stride_qn + dims[None, :] * stride_qd",
            "query = tl.load(q_at, mask=valid_row[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)",
            "at = (b64 * heads + head) * n_q + rows - (n - n_q)",
            "valid_out = valid_row[:, None] & (dims_v < VALUE_DIM)[None, :]",
            *(line for name, atom in self.atoms for line in self._atom_setup(name, atom)),
        ]

    def _target(self) -> list[str]:
        """Where results of the rows go: ``put`` (ROWS,), for the rows that ``kept`` names."""
        if not self.group.share:
            return ["put, kept = at, valid_row"]
        return [f"put, kept = {self._left_at('head', 'heads')}, lanes >= 0"]

    def _keys_and_scores(self, mask: Scalar | None, view: View) -> tuple[str, list[str]]:
        bound = str(int(mask is not None))
        lines = [
            *self._columns(view),
            f"key = {self._load('k', 'kv', view, '', bound)}",
            "scores = tl.dot(query, key.T, input_precision='ieee') * (scale * 1.4426950408889634)",
            *(self._masked(mask, "columns") if mask is not None else []),
        ]
        return f"value = {self._load('v', 'kv', view, '', bound)}", lines

    def _key_parameters(self, i: int) -> list[str]:  # noqa: ARG002
        return []

    def _gather(self, i: int, phase: Gather) -> list[str]:  # noqa: ARG002
        atom = dict(self.group.atoms)[phase.drawn]
        assert isinstance(atom, Draws)
        return [
            f"for t in range(0, {phase.slots}):",
            f"    key_at = column({phase.source}_keys, t, {slots(atom)})",
            f"    k = tl.maximum(key_at, 0)[:, None]{'.to(tl.int64)' if self.wide else ''}",
            "    safe_q, safe_k = tl.minimum(q, n - 1), k",
            f"    keep = (key_at >= 0)[:, None] & valid_row[:, None] & ({self._mask(phase.mask)})",
            "    k_at = k_base + k.to(tl.int64) * stride_kn + dims[None, :] * stride_kd",
            "    key = tl.load(k_at, mask=keep & (dims < HEAD_DIM)[None, :], other=0.0)",
            "    scores = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1) * (scale * 1.4426950408889634)",
            "    scores = tl.where(tl.max(keep.to(tl.int32), 1) > 0, scores, float('-inf'))",
            "    v_at = v_base + k.to(tl.int64) * stride_vn + dims_v[None, :] * stride_vd",
            "    value = tl.load(v_at, mask=keep & (dims_v < VALUE_DIM)[None, :], other=0.0)",
            f"    {self._fold_one}",
        ]

    _fold_one = ""


class Forward(_ByQuery):
    """Output and log-sum-exp: the online softmax."""

    kind = "kernel"
    pointers = ("k_view", "v_view", "q_ptr", "k_ptr", "v_ptr", "out_ptr", "prior_ptr", "lse_ptr")
    _fold_one = "acc, total, top = fold_one(acc, total, top, scores, value)"

    def _share_pointers(self, i: int) -> list[str]:
        return [f"share_{i}_ptr", f"share_{i}_lse"]

    def _setup(self) -> list[str]:
        lines = self._head()
        if self.group.chained:
            lines += self._left_before()
        else:
            lines += [
                "top = tl.full([ROWS], float('-inf'), tl.float32)",
                "total = tl.zeros([ROWS], tl.float32)",
                "acc = tl.zeros([ROWS, BLOCK_V], tl.float32)",
            ]
        return [*lines, *self._taken_up()]

    def _left_before(self) -> list[str]:
        """The softmax as the passes before have left it."""
        return [
            "top = tl.load(lse_ptr + at, mask=valid_row, other=float('-inf')) * 1.4426950408889634",
            "total = tl.where(top == float('-inf'), 0.0, 1.0)",
            "acc = tl.load(prior_ptr + at[:, None] * VALUE_DIM + dims_v[None, :], mask=valid_out, other=0.0)",
        ]

    def _taken_up(self) -> list[str]:
        """What shares of these rows have left, joined."""
        lines = []
        for i in range(len(self.shares)):
            lines += [
                *self._shared_places(i),
                f"shared = (b64 * heads + head) * share_{i}_rows + shared",
                f"more_at = share_{i}_ptr + shared[:, None] * VALUE_DIM + dims_v[None, :]",
                "more = tl.load(more_at, mask=held[:, None] & valid_out, other=0.0)",
                f"lse = tl.load(share_{i}_lse + shared, mask=held & valid_row, other=float('-inf')) * 1.4426950408889634",
                "acc, total, top = join(acc, total, top, more, lse)",
            ]
        return lines

    def _step(self, mask: Scalar | None, view: View) -> list[str]:
        value, lines = self._keys_and_scores(mask, view)
        return [*lines, value, "acc, total, top = fold(acc, total, top, scores, value)"]

    def _finish(self) -> list[str]:
        return [
            "empty = total == 0.0",
            "out = acc * (1.0 / tl.where(empty, 1.0, total))[:, None]",
            "lse = tl.where(empty, float('-inf'), (top + tl.log2(total)) * 0.6931471805599453)",
            *self._target(),
            "tl.store(lse_ptr + put, lse, mask=kept)",
            "out_at = out_ptr + put[:, None] * VALUE_DIM + dims_v[None, :]",
            "tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=kept[:, None] & (dims_v < VALUE_DIM)[None, :])",
        ]


class Queries(_ByQuery):
    """The gradient of q: dS K, with dS = P (dO V^T - delta) and delta = dO . O - dLSE.

    The first pass over all rows leaves delta, and the log-sum-exp in base 2 (inf for rows without keys), for later passes.
    """

    kind = "queries"
    pointers: tuple[str, ...] = (
        *("k_view", "v_view", "q_ptr", "k_ptr", "v_ptr", "grad_ptr", "out_ptr", "lse_ptr", "grad_lse_ptr"),
        *("delta_ptr", "norm_ptr", "dq_ptr", "prior_ptr"),
    )
    strides = (*_ByQuery.strides, *(f"stride_g{axis}" for axis in "bhnd"))
    _fold_one = "acc = fold_query_one(acc, scores, norm, delta, grad, key, value)"

    def _share_pointers(self, i: int) -> list[str]:
        return [f"share_{i}_ptr"]

    _gradient = (
        "g_base = grad_ptr + b64 * stride_gb + head.to(tl.int64) * stride_gh",
        "g_at = g_base + (rows - (n - n_q)).to(tl.int64)[:, None] * stride_gn + dims_v[None, :] * stride_gd",
    )

    def _setup(self) -> list[str]:
        lines = [
            *self._head(),
            *self._gradient,
            "grad = tl.load(g_at, mask=valid_out, other=0.0)",
            "valid_q = valid_row[:, None] & (dims < HEAD_DIM)[None, :]",
        ]
        if self.group.chained:
            lines += [
                "delta = tl.load(delta_ptr + at, mask=valid_row, other=0.0)",
                "norm = tl.load(norm_ptr + at, mask=valid_row, other=float('inf'))",
                "acc = tl.load(prior_ptr + at[:, None] * HEAD_DIM + dims[None, :], mask=valid_q, other=0.0)",
            ]
        else:
            lines += [
                "out = tl.load(out_ptr + at[:, None] * VALUE_DIM + dims_v[None, :], mask=valid_out, other=0.0)",
                "delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)",
                "delta = delta - tl.load(grad_lse_ptr + at, mask=valid_row, other=0.0)",
                "norm = tl.load(lse_ptr + at, mask=valid_row, other=float('inf'))",
                "norm = tl.where(norm == float('-inf'), float('inf'), norm * 1.4426950408889634)",
                "acc = tl.zeros([ROWS, BLOCK_D], tl.float32)",
            ]
            if not self.group.share:
                lines += ["tl.store(delta_ptr + at, delta, mask=valid_row)", "tl.store(norm_ptr + at, norm, mask=valid_row)"]
        for i in range(len(self.shares)):
            lines += [
                *self._shared_places(i),
                f"shared = (b64 * heads + head) * share_{i}_rows + shared",
                f"share_at = share_{i}_ptr + shared[:, None] * HEAD_DIM + dims[None, :]",
                "acc += tl.load(share_at, mask=held[:, None] & valid_q, other=0.0)",
            ]
        return lines

    def _step(self, mask: Scalar | None, view: View) -> list[str]:
        value, lines = self._keys_and_scores(mask, view)
        return [*lines, value, "acc = fold_query(acc, scores, norm, delta, grad, key, value)"]

    def _finish(self) -> list[str]:
        factor = " * scale" if self.group.last else ""
        return [
            *self._target(),
            "dq_at = dq_ptr + put[:, None] * HEAD_DIM + dims[None, :]",
            f"tl.store(dq_at, (acc{factor}).to(dq_ptr.dtype.element_ty), mask=kept[:, None] & (dims < HEAD_DIM)[None, :])",
        ]


class RetiledQueries(Queries):
    """`Queries` in tiles of their own, not those of the output, of which there are lists of their own too."""

    lists = "query_lists"
    tile = "QUERY_ROWS", "QUERY_COLUMNS"


class Keys(Program):
    """The gradients of k and v: dS^T Q and P^T dO, summed over the query heads that share a key head.

    With ``CARRY`` the sums start from what other passes, or other groups of heads, have left.
    """

    kind = "keys"
    lists = "key_lists"
    tile = "KEY_ROWS", "KEY_COLUMNS"
    copied, given = "qg", "q, k, v, grad, delta, norm"
    """The letters of the tensors that the copy engine loads, and the host's names of those that are given after their views."""
    pointers: tuple[str, ...] = (
        *("q_view", "g_view", "q_ptr", "k_ptr", "v_ptr", "grad_ptr", "delta_ptr", "norm_ptr"),
        *("dk_ptr", "dv_ptr", "dk_prior", "dv_prior"),
    )
    strides: tuple[str, ...] = tuple(f"stride_{t}{axis}" for t in "qkvg" for axis in "bhnd")
    lengths = ("n", "n_q", "heads", "run_heads", "splits")
    constants = (*Program.constants, "PREFIX", "CARRY", "LAST")

    drawn_from_table = True
    _row, _column = "k", "q"
    _last_first = False
    _first_tile = ""
    _listed_tile = "tile"
    _lowest = "0"

    def _share_pointers(self, i: int) -> list[str]:
        return [f"share_{i}_dk", f"share_{i}_dv"]

    def _parameters(self) -> list[str]:
        return [*super()._parameters(), "sharing"]

    _key_head = (
        "kv = tl.where(sharing == 1, slot // RUN * PERIOD + FIRST + slot % RUN, slot)",
        "kv_heads = heads // sharing",
    )

    def _setup(self) -> list[str]:
        lines = [
            *self._key_head,
            "valid_row = rows < n",
            "dims = tl.arange(0, BLOCK_D)",
            "dims_v = tl.arange(0, BLOCK_V)",
            "valid_k = valid_row[:, None] & (dims < HEAD_DIM)[None, :]",
            "valid_v = valid_row[:, None] & (dims_v < VALUE_DIM)[None, :]",
            "k_at = k_ptr + b64 * stride_kb + kv.to(tl.int64) * stride_kh + rows.to(tl.int64)[:, None] * stride_kn",
            "key = tl.load(k_at + dims[None, :] * stride_kd, mask=valid_k, other=0.0)",
            "v_at = v_ptr + b64 * stride_vb + kv.to(tl.int64) * stride_vh + rows.to(tl.int64)[:, None] * stride_vn",
            "value = tl.load(v_at + dims_v[None, :] * stride_vd, mask=valid_v, other=0.0)",
            "at = (b64 * kv_heads + kv) * n + rows",
            "dk = tl.zeros([ROWS, BLOCK_D], tl.float32)",
            "dv = tl.zeros([ROWS, BLOCK_V], tl.float32)",
            "if CARRY:",
            "    dk = tl.load(dk_prior + at[:, None] * HEAD_DIM + dims[None, :], mask=valid_k, other=0.0)",
            "    dv = tl.load(dv_prior + at[:, None] * VALUE_DIM + dims_v[None, :], mask=valid_v, other=0.0)",
        ]
        for i in range(len(self.shares)):
            lines += [
                *self._shared_places(i),
                f"shared = ((b64 * kv_heads + kv) * share_{i}_rows + shared)[:, None]",
                f"share_k, share_v = share_{i}_dk + shared * HEAD_DIM, share_{i}_dv + shared * VALUE_DIM",
                "dk += tl.load(share_k + dims[None, :], mask=held[:, None] & valid_k, other=0.0)",
                "dv += tl.load(share_v + dims_v[None, :], mask=held[:, None] & valid_v, other=0.0)",
            ]
        return lines

    def _body(self) -> list[str]:
        inner = [
            "q_base = q_ptr + b64 * stride_qb + head.to(tl.int64) * stride_qh",
            "g_base = grad_ptr + b64 * stride_gb + head.to(tl.int64) * stride_gh",
            "at_base = (b64 * heads + head) * n_q",
            *(line for name, atom in self.atoms for line in self._atom_setup(name, atom)),
            *super()._body(),
        ]
        return self._each_head(inner) if self.group.phases else []

    def _each_head(self, inner: list[str]) -> list[str]:
        """A loop over the query heads of this pass that share the key head."""
        if len(self.group.heads) < self.group.period:
            inside = "(head % PERIOD >= FIRST) & (head % PERIOD < FIRST + RUN)"
            inner = [f"if {inside}:", *("    " + line for line in inner)]
        return ["for member in range(0, sharing):", *("    " + line for line in ["head = kv * sharing + member", *inner])]

    def _step(self, mask: Scalar | None, view: View) -> list[str]:
        bound = "2 if PREFIX else 1" if mask is not None else "2 if PREFIX else 0"
        place = "first" if view.key == Var("u") else "columns"
        return [
            *self._columns(view),
            f"query = {self._load('q', 'head', view, ' - (n - n_q)', bound)}",
            f"grad = {self._load('g', 'head', view, ' - (n - n_q)', bound)}",
            f"norm = load_values(norm_ptr + at_base, {place} - (n - n_q), n_q, float('inf'), COLUMNS, {bound})",
            "scores = tl.dot(key, query.T, input_precision='ieee') * (scale * 1.4426950408889634)",
            *(self._masked(mask, "columns") if mask is not None else []),
            "p = tl.exp2(scores - norm[None, :])",
            "dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision='ieee')",
            f"delta = load_values(delta_ptr + at_base, {place} - (n - n_q), n_q, 0.0, COLUMNS, {bound})",
            "slope = p * (tl.dot(value, grad.T, input_precision='ieee') - delta[None, :])",
            "dk = tl.dot(slope.to(query.dtype), query, dk, input_precision='ieee')",
        ]

    def _key_parameters(self, i: int) -> list[str]:
        return [f"order_{i}", f"begin_{i}", f"count_{i}", f"order_{i}_b", f"order_{i}_h"]

    def _gather(self, i: int, phase: Gather) -> list[str]:
        return [
            f"at_{i} = b64 * order_{i}_b + head.to(tl.int64) * order_{i}_h + rows",
            f"begin = tl.load(begin_{i} + at_{i}, mask=valid_row, other=0)",
            f"count = tl.load(count_{i} + at_{i}, mask=valid_row, other=0)",
            "for t in range(0, tl.max(count, 0)):",
            f"    query_at = tl.load(order_{i} + begin + t, mask=t < count, other=0)",
            f"    q = (query_at + n - n_q)[:, None]{'.to(tl.int64)' if self.wide else ''}",
            "    safe_q, safe_k = q, tl.minimum(k, n - 1)",
            f"    keep = (t < count)[:, None] & ({self._mask(phase.mask)})",
            "    query_row = query_at.to(tl.int64)[:, None]",
            "    q_at = q_base + query_row * stride_qn + dims[None, :] * stride_qd",
            "    query = tl.load(q_at, mask=keep & (dims < HEAD_DIM)[None, :], other=0.0)",
            "    g_at = g_base + query_row * stride_gn + dims_v[None, :] * stride_gd",
            "    grad = tl.load(g_at, mask=keep & (dims_v < VALUE_DIM)[None, :], other=0.0)",
            "    norm = tl.load(norm_ptr + at_base + query_at)",
            "    delta = tl.load(delta_ptr + at_base + query_at)",
            "    scores = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1) * (scale * 1.4426950408889634)",
            "    scores = tl.where(tl.max(keep.to(tl.int32), 1) > 0, scores, float('-inf'))",
            "    dk, dv = fold_key_one(dk, dv, scores, norm, delta, query, grad, value)",
        ]

    def _finish(self) -> list[str]:
        put = "put, kept = at, valid_row"
        if self.group.share:
            put = f"put, kept = {self._left_at('kv', 'kv_heads')}, lanes >= 0"
        return [
            put,
            "factor = scale if LAST else 1.0",
            "dk_at = dk_ptr + put[:, None] * HEAD_DIM + dims[None, :]",
            "tl.store(dk_at, (dk * factor).to(dk_ptr.dtype.element_ty), mask=kept[:, None] & (dims < HEAD_DIM)[None, :])",
            "dv_at = dv_ptr + put[:, None] * VALUE_DIM + dims_v[None, :]",
            "tl.store(dv_at, dv.to(dv_ptr.dtype.element_ty), mask=kept[:, None] & (dims_v < VALUE_DIM)[None, :])",
        ]


def device_draws(index: int, name: str, atom: Draws) -> str:
    """A device function: the draws of some query blocks."""
    names = {"q": "row", "n": "length"}
    lines = [
        "@triton.jit",
        f"def {name}_g{index}_drawn(q, head, n, ROWS: tl.constexpr):",
        f'    """The draws of each query block q (ROWS,): {atom.choice}, as (ROWS, {slots(atom)}), -1 for none."""',
        "    row = q.to(tl.int64)[:, None]",
        "    length = row * 0 + n",
    ]
    for i, loop in enumerate(atom.loops):
        lines.append(f"    count_{i} = tl.maximum({triton(loop.count, names)}, 0) + row * 0")
    lines.append(f"    total = {' + '.join(f'count_{i}' for i in range(len(atom.loops))) or 'row * 0'}")
    if atom.choice.pool is not None:
        lines.append(f"    total = tl.minimum(total, {atom.choice.pool})")
    lines.append(f"    rank = drawn_ranks(total, head, row, {atom.choice.seed}, {atom.choice.draws}, {slots(atom)}, ROWS)")
    lines.append("    found = rank * 0 - 1")
    if any(loop.interleaved for loop in atom.loops):
        lines += _merged(atom, names)
    else:
        lines.append("    rank = tl.where(rank < 0, 1 << 40, rank)")
        for i, loop in enumerate(atom.loops):
            value = f"{triton(loop.start, names)} + {loop.step} * rank"
            lines.append(f"    found = tl.where((rank >= 0) & (rank < count_{i}), {value}, found)")
            lines.append(f"    rank = rank - count_{i}")
    lines.append("    return found.to(tl.int32)")
    return "\n".join(lines)


def _merged(atom: Draws, names: dict[str, str]) -> list[str]:
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


def kinds(phase: Listed) -> list[tuple[str, Scalar | None]]:
    """The lists of a phase: of full tiles (f), which need no mask, where there may be some, and of partial ones (p)."""
    partial: list[tuple[str, Scalar | None]] = [("p", phase.mask)]
    return partial if phase.full == FALSE else [("f", None), *partial]


def slots(atom: Draws) -> int:
    """The draws rounded up to a power of two, as Triton's ranges need."""
    return 1 << (atom.choice.draws - 1).bit_length()


def _scalars(phase: Phase) -> list[Scalar]:
    match phase:
        case Walk(full=full, partial=partial, mask=mask):
            return [mask, *(e for loop in full + partial for e in (loop.start, loop.count, loop.guard))]
        case Listed() | Gather() | Picked():
            return [phase.mask]
