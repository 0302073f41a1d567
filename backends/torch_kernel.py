"""The torch kernel: copied verbatim, after the support code, into every file that `emit_torch` writes.

The key tiles of a plan become steps: blocks of queries that read equally many keys each and lie evenly spaced in memory, so
that one batched product serves them all without a copy. Each step leaves an output and a log-sum-exp, which are merged into
the result; the backward pass recomputes the probabilities from the log-sum-exp. Work and memory follow the tiles.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from patternc.runtime.support import Scope, head_ids, prepare, without_autocast

LONG = 1024  # keys without a mask that are worth a step of their own
FEW = 32  # queries of a block that is no longer halved to save a few keys
ALIGNED = 16  # what the keys of a block with a mask are a multiple of, if there are more: a product is faster so
SAVED = 1 << 14  # pairs that are worth another step
MASKED = 1 << 22  # pairs of the masks that are computed, or held, at a time
KEPT = 1 << 24  # elements of the steps that are kept between calls,
SMALL = 1 << 14  # and what the smallest ones count as
MOVED = 1 << 20  # elements of the output, and of gathered keys, of one step
PAIRS = {"cpu": 1 << 19}  # scores of one step, where they are stored: near the caches of a CPU
MANY_PAIRS = 1 << 24  # and on other devices


@dataclass(frozen=True)
class Walk:
    """Key tiles in closed form: ``tiles(I, n, r)`` yields (J, masked) of row tile I of residue r.

    ``view`` is (offset, period, width, first), as a plan's views are. ``varies`` names what the pairs depend on besides the
    length: "b" batches, "h" heads.
    """

    tiles: Any
    mask: Any
    view: tuple = (0, 1, 1, 0)
    documents: tuple = ()
    varies: str = ""


@dataclass(frozen=True)
class Listed:
    """Key tiles that ``blocks(scope, q)`` lists, as (block size, key blocks) of the queries q, where ``active(I, J, n)``."""

    blocks: Any
    active: Any
    mask: Any
    varies: str = ""


@dataclass(frozen=True)
class Gather:
    """Keys of each query one by one: ``keys(scope, q)`` of shape (b, h, rows, slots), -1 where there are fewer."""

    keys: Any
    mask: Any


@dataclass(frozen=True)
class Heads:
    """A pass over the heads in ``runs`` (first, count) of each period: over the queries of each residue modulo ``stride``."""

    runs: tuple
    period: int
    selections: int
    phases: tuple
    stride: int = 1
    chained: bool = False


@dataclass(frozen=True)
class Blocks:
    """``count`` blocks of ``size`` positions ``step`` apart, which begin ``gap`` apart, or are at ``index`` (count, size)."""

    first: int
    gap: int
    count: int
    step: int
    size: int
    index: Any = None

    def of(self, x, heads):
        """The blocks (count, h, size, d) of x (heads, n, d), for heads (first, gap, count): a view, if there is no index."""
        if self.index is not None:
            return _heads(x, heads)[:, self.index].transpose(0, 1)
        first, gap, count = heads
        a, b, _ = x.stride()
        shape, strides = (self.count, count, self.size, x.shape[2]), (self.gap * b, gap * a, self.step * b, 1)
        return x.as_strided(shape, strides, x.storage_offset() + first * a + self.first * b)

    def put(self, x, heads, value):
        """Store what `of` gave and the caller changed in place."""
        if self.index is not None:
            _heads(x, heads)[:, self.index] = value.transpose(0, 1)

    def add(self, x, heads, value):
        """Add (count, h, size, d) to the blocks, which may overlap; heads too, if their gap is 0."""
        if heads[1] == 0 and heads[2] > 1:
            heads, value = (heads[0], 0, 1), value.sum(1, keepdim=True)
        if self.index is None and self.gap == 0 and self.count > 1:
            replace(self, count=1).add(x, heads, value.sum(0, keepdim=True))
        elif self.index is None and self._apart:
            self.of(x, heads).add_(value)
        elif self.index is None and self.gap % self.step == 0:
            width = self.gap // self.step
            for at in range(0, self.size, width):
                part = self.part(slice(0, self.count), at, min(self.size, at + width))
                part.of(x, heads).add_(value[:, :, at : at + width])
        else:
            index = self.index
            if index is None:
                starts = self.first + self.gap * torch.arange(self.count, device=x.device)
                index = starts[:, None] + self.step * torch.arange(self.size, device=x.device)
            _heads(x, heads).index_add_(1, index.flatten(), value.transpose(0, 1).flatten(1, 2))

    def to(self, device):
        return self if self.index is None else replace(self, index=self.index.to(device))

    @property
    def _apart(self):
        return self.count == 1 or self.gap >= self.step * self.size or self.gap * self.count <= self.step

    def part(self, blocks, first, end):
        """Positions first to end of some of the blocks."""
        count = len(range(self.count)[blocks])
        if self.index is not None:
            return replace(self, count=count, size=end - first, index=self.index[blocks, first:end])
        start = self.first + self.gap * blocks.start + self.step * first
        return replace(self, first=start, count=count, size=end - first)


def _heads(x, heads):
    first, gap, count = heads
    return x.as_strided((count, *x.shape[1:]), (gap * x.stride(0), *x.stride()[1:]), x.storage_offset() + first * x.stride(0))


@dataclass(frozen=True)
class Step:
    """Blocks of queries, the block of keys that each reads, and the mask that they share: 0 or -inf, or none.

    The keys are those of ``packed``: (period, width, first), or all. ``fresh`` says that no earlier step of its phase had
    these queries, ``corner`` that the mask is the lower triangle; ``heads`` is (first, gap, count) of q's and of k's heads.
    """

    packed: Any
    queries: Blocks
    keys: Blocks
    mask: Any
    fresh: bool
    corner: bool = False
    heads: tuple = ()

    def parts(self, most_pairs):
        """The same in parts of at most about ``most_pairs`` pairs each."""
        heads, rows, keys, count = self.heads[0][2], self.queries.size, self.keys.size, self.queries.count
        rows = min(rows, max(256, most_pairs // max(1, heads * keys)))
        keys = min(keys, max(256, most_pairs // (heads * rows)), rows if self.corner else keys)
        count = min(count, max(1, most_pairs // (heads * rows * keys)))
        for at in range(0, self.queries.count, count):
            blocks = slice(at, min(self.queries.count, at + count))
            for a in range(0, self.queries.size, rows):
                for c in range(0, self.keys.size, keys):
                    b, d = min(self.queries.size, a + rows), min(self.keys.size, c + keys)
                    if not self.corner or c < b:
                        mask = None if self.mask is None or (self.corner and d <= a) else self.mask[a:b, c:d]
                        queries, tile = self.queries.part(blocks, a, b), self.keys.part(blocks, c, d)
                        yield replace(self, queries=queries, keys=tile, mask=mask, corner=False)

    def slabs(self, wide):
        """The same in some blocks at a time, so that what they leave stays near the caches."""
        each = self.heads[0][2] * wide * (self.queries.size + (0 if self.keys.index is None else self.keys.size))
        count = max(1, MOVED // each)
        for at in range(0, self.queries.count, count):
            blocks = slice(at, min(self.queries.count, at + count))
            queries, keys = self.queries.part(blocks, 0, self.queries.size), self.keys.part(blocks, 0, self.keys.size)
            yield replace(self, queries=queries, keys=keys)


@dataclass(frozen=True)
class Slots:
    """Queries first to end, and the keys (heads, rows, slots) that each reads, where ``valid``; of q's and of k's heads."""

    first: int
    end: int
    keys: Any
    valid: Any
    q_heads: Any
    k_heads: Any


def _steps(q, k, inputs, chosen, width):
    """What a call does, as steps and slots."""
    batch, heads, n_q, _ = q.shape
    n, sharing, device = k.shape[2], heads // k.shape[1], q.device
    ready = prepare(inputs, batch, heads, n, device, scores=False)
    at = 0
    for group in GROUPS:
        ids = head_ids(group.runs, group.period, heads, device)
        given = {**ready, "selections": chosen[at : at + group.selections]}
        at += group.selections
        if n_q == 0 or batch == 0 or len(ids) == 0:
            continue
        for i, phase in enumerate(group.phases):
            if isinstance(phase, Gather):
                yield from _slots(phase, Scope(n, *_indices(range(batch), ids, device), given), n_q, sharing, heads, width)
                continue
            for bs, hs in _alike(phase, ready, batch, ids.tolist()):
                scope = Scope(n, *_indices(bs[:1], hs[:1], device), given)
                runs = _head_runs([(b * heads + h, (b * heads + h) // sharing) for b in bs for h in hs])
                for step in _kept(phase, group.stride, scope, n_q, device):
                    for run in runs:
                        yield replace(step, fresh=step.fresh and i == 0 and not group.chained, heads=run)


def _indices(bs, hs, device):
    return torch.as_tensor(bs, device=device).view(-1, 1, 1, 1), torch.as_tensor(hs, device=device).view(-1, 1, 1)


def _alike(phase, ready, batch, heads):
    """Batches and heads that read the same keys."""
    shared = "b" not in phase.varies or all(t.shape[0] == 1 for t in ready.values() if isinstance(t, torch.Tensor))
    for bs in [list(range(batch))] if shared else [[b] for b in range(batch)]:
        for hs in [[h] for h in heads] if "h" in phase.varies else [heads]:
            yield bs, hs


def _head_runs(pairs):
    """Pairs (head of q, head of k) as runs of even gaps: ((first, gap, count) of q's, the same of k's)."""
    return [((x, dx, count), (y, dy, count)) for (x, y), (dx, dy), count in _runs(pairs)]


def _runs(points):
    """Pairs of numbers as runs (first, gap, count) with even gaps, none of them negative."""
    runs = []
    last = (0, 0)
    for x, y in points:
        gap = x - last[0], y - last[1]
        if runs and min(gap) >= 0 and (runs[-1][2] == 1 or runs[-1][1] == gap):
            runs[-1] = runs[-1][0], gap, runs[-1][2] + 1
        else:
            runs.append(((x, y), (0, 0), 1))
        last = x, y
    return runs


_STEPS: dict = {}


def _kept(phase, stride, scope, n_q, device):
    """The steps of a phase; those that depend on lengths and heads alone are kept, if there is room."""
    if "b" in phase.varies:
        yield from (step for steps in _built(phase, stride, scope, n_q, device) for step in steps)
        return
    length = scope.n, n_q, str(device)
    key = length, phase, stride, int(scope.head[0]) if phase.varies else 0
    found = _STEPS.get(key)
    if found is not None:
        yield from found[1]
        return
    cpu = Scope(scope.n, scope.batch.cpu(), scope.head.cpu(), {})
    size, every = SMALL, []
    for steps in _built(phase, stride, cpu, n_q, device):
        tensors = {id(t): t for step in steps for t in (step.mask, step.queries.index, step.keys.index) if t is not None}
        size += sum(t.numel() for t in tensors.values())
        every = every + steps if size <= KEPT else []
        yield from steps
    if size <= KEPT:
        _keep(key, size, every)


def _keep(key, size, steps):
    """Keep steps, in place of those of other lengths if need be: those of the same call are wanted again before these."""
    others = [other for other in list(_STEPS) if other[0] != key[0]]
    while sum(kept for kept, _ in list(_STEPS.values())) + size > KEPT:
        if not others:
            return
        _STEPS.pop(others.pop(0), None)
    _STEPS[key] = size, steps


def _built(phase, stride, scope, n_q, device):
    """The steps of a phase in lists, each of as many row tiles as a number of masks allows."""
    touched = torch.zeros(1, n_q, 1, dtype=torch.bool)
    masks, tiles, held = {}, {}, 0
    for packed, turn, row, rows, keys, mask in _pieces(phase, stride, scope, n_q):
        name = None if mask is None else _name(mask)
        if name is not None and name not in masks:
            masks[name] = mask
            held += mask.numel()
        tiles.setdefault((packed, turn, rows, len(keys), name), []).append((row, keys))
        if held > MASKED:
            yield _batched(tiles, masks, stride, touched, device)
            masks, tiles, held = {}, {}, 0
    yield _batched(tiles, masks, stride, touched, device)


def _batched(tiles, masks, stride, touched, device):
    """Steps of pieces: those of one shape and mask are cut alike, and those that lie evenly spaced are one step."""
    cuts, pieces = {}, {}
    for (packed, turn, rows, size, name), places in tiles.items():
        for at, count, columns, mask in (
            [(0, rows, slice(0, size), None)] if name is None else _cut(masks[name], 0, len(places))
        ):
            part = None if mask is None else _name(mask)
            cuts.setdefault(part, mask)
            for row, keys in places:
                some = keys[columns]
                even = len(some) == 1 or bool((some.diff() == stride).all())
                pieces.setdefault((packed, turn, count, len(some), part, even), []).append((row + at * stride, some))
    steps = []
    floats = {name: None if mask is None else _additive(mask).to(device) for name, mask in cuts.items()}
    corners = {name for name, mask in cuts.items() if mask is not None and _is_corner(mask)}
    for (packed, _, rows, size, name, even), places in pieces.items():
        for queries, keys in _even(places, rows, size, stride, name) if even else _indexed(places, rows, size, stride):
            seen = queries.of(touched, (0, 0, 1))
            fresh = not bool(seen.any())
            queries.put(touched, (0, 0, 1), seen.fill_(True))
            steps.append(Step(packed, queries.to(device), keys.to(device), floats[name], fresh, name in corners))
    return steps


def _name(mask):
    return tuple(mask.shape), mask.numpy().tobytes()


def _additive(mask):
    return torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)


def _is_corner(mask):
    """Whether it is the lower triangle, of which torch knows what to leave out."""
    return mask.shape[0] == mask.shape[1] and torch.equal(mask, torch.ones_like(mask).tril_())


def _even(places, rows, size, stride, mask):
    points = [(row, int(keys[0])) for row, keys in places]
    for (row, key), (row_gap, key_gap), count in min(_runs(points), _runs(sorted(points)), key=len):
        if mask is None and key_gap == 0 and row_gap == rows * stride:  # neighbours that read the same keys
            yield Blocks(row, 0, 1, stride, count * rows), Blocks(key, 0, 1, stride, size)
        else:
            yield Blocks(row, row_gap, count, stride, rows), Blocks(key, key_gap, count, stride, size)


def _indexed(places, rows, size, stride):
    index = torch.tensor([row for row, _ in places])[:, None] + stride * torch.arange(rows)
    keys = torch.stack([keys for _, keys in places])
    yield Blocks(0, 0, len(places), stride, rows, index), Blocks(0, 0, len(places), stride, size, keys)


def _pieces(phase, stride, scope, n_q):
    """What each row tile reads: (packed, turn, first query, queries, keys, mask or None), no query twice in a turn.

    The first query counts from the first of the call, keys count in the packed ones, queries are a stride apart.
    """
    n, base, device = scope.n, scope.n - n_q, scope.head.device
    for r in sorted((base + i) % stride for i in range(min(stride, n_q))):
        begin, end = -((r - base) // stride), -((r - n) // stride)
        for tile in range(begin // ROWS, (end - 1) // ROWS + 1):
            rows = torch.arange(max(begin, tile * ROWS), min(end, (tile + 1) * ROWS), device=device) * stride + r
            turns = [0, 0]
            for packed, keys, places, masked in _reads(phase, stride, scope, tile, r, rows):
                mask = None
                if masked:
                    mask = phase.mask(scope, rows[:, None], places.to(device)[None, :])
                    mask = mask.expand(1, 1, len(rows), len(keys))[0, 0].cpu()
                yield packed, (masked, turns[masked]), int(rows[0]) - base, len(rows), keys, mask
                turns[masked] += 1


def _reads(phase, stride, scope, tile, r, rows):
    """The keys that a row tile reads: (packed, their indices among the packed ones, their positions, masked)."""
    widest = max(1, MASKED // ROWS)
    if isinstance(phase, Listed):
        found = set()
        for block, keys in phase.blocks(scope, rows):
            for key in torch.unique(keys).tolist():
                if key >= 0:
                    found.update(range(key * block // COLUMNS, (min(scope.n, (key + 1) * block) - 1) // COLUMNS + 1))
        tiles = [(j, True) for j in sorted(found) if phase.active(tile, j, scope.n)]
        keys = [torch.arange(first, end) for first, end, _ in _spans(tiles, scope.n)]
        for part in torch.cat(keys).split(widest) if keys else ():
            yield None, part, part, True
        return
    offset, period, width, first_key = phase.view
    tiles = phase.tiles(tile, scope.n, r)
    for name in phase.documents:
        first, end = (bound[scope.pick(bound[:, None])[0].flatten()[0]] for bound in scope.inputs[f"{name}:bounds"])
        low, high = int(first[rows[0]]), int(end[rows[-1]])
        tiles = [(j, masked) for j, masked in tiles if j * COLUMNS < high and (j + 1) * COLUMNS > low]
    packed = (period, width, first_key) if period > 1 else None
    begin = (r - offset) % stride
    limit = _packed_length(scope.n, packed) if packed else -((begin - scope.n) // stride)
    for first, end, masked in _spans(tiles, limit):
        for part in torch.arange(first, end).split(widest if masked else end - first):
            keys = part * stride + begin
            yield packed, keys, _packed_places(part, packed) if packed else keys, masked


def _packed_length(n, packed):
    period, width, first = packed
    return n // period * width + min(width, max(0, n % period - first))


def _packed_places(keys, packed):
    period, width, first = packed
    return keys // width * period + first + keys % width


def _spans(tiles, limit):
    """Touching tiles as spans (first, end, masked); short ones without a mask join a neighbour with one."""
    runs = []
    for j, masked in sorted(tiles):
        first, end = j * COLUMNS, min(limit, (j + 1) * COLUMNS)
        if runs and runs[-1][1] == first and runs[-1][2] == masked:
            runs[-1][1] = end
        else:
            runs.append([first, end, masked])
    spans = []
    for first, end, masked in runs:
        short = masked or end - first < LONG
        if spans and spans[-1][1] == first and short and spans[-1][3]:
            spans[-1][1:3] = end, spans[-1][2] or masked
        else:
            spans.append([first, end, masked, short])
    return [(first, end, masked) for first, end, masked, _ in spans]


def _cut(mask, at, times):
    """A mask that is used so often in blocks of rows: (first row, rows, the columns that they need, mask or None)."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if len(rows) == 0:
        return
    half = len(mask) // 2
    if half and not _is_corner(mask[:, : int(columns[-1]) + 1]):
        pairs = len(rows) * _reach(columns)
        saved = pairs - sum(int(part.any(1).sum()) * _reach(part.any(0).nonzero()[:, 0]) for part in (mask[:half], mask[half:]))
        if saved * times > SAVED and (64 * saved > pairs if len(mask) > FEW else 2 * saved > pairs):
            yield from _cut(mask[:half], at, times)
            yield from _cut(mask[half:], at + half, times)
            return
    first, end = int(rows[0]), int(rows[-1]) + 1
    low, high = int(columns[0]), int(columns[-1]) + 1
    if _reach(columns) == high - low:
        if not bool(mask[first:end, low:high].all()):
            low = max(0, low - (low - high) % ALIGNED)
            high = min(mask.shape[1], high + (low - high) % ALIGNED)
        columns = torch.arange(low, high)
    part = mask[first:end][:, columns]
    yield at + first, end - first, columns, None if bool(part.all()) else part


def _reach(columns):
    """What columns cost: those between them too, or twice as much where they are fetched one by one."""
    return min(int(columns[-1] - columns[0]) + 1, 2 * len(columns)) if len(columns) else 0


def _slots(phase, scope, n_q, sharing, heads, width):
    """The keys of a `Gather`, some rows at a time."""
    device = scope.head.device
    every = scope.batch.flatten()[:, None] * heads + scope.head.flatten()
    shape, every = every.shape, every.flatten()
    at, count = 0, 1
    while at < n_q:
        q = torch.arange(at, min(n_q, at + count), device=device)[:, None] + scope.n - n_q
        keys = phase.keys(scope, q)
        valid = (keys >= 0) & phase.mask(scope, q, keys.clamp(min=0))
        keys, valid = (t.expand(*shape, *keys.shape[2:]).flatten(0, 1) for t in (keys, valid))
        end, count = at + len(q), max(1, MANY_PAIRS // (len(every) * max(1, keys.shape[2]) * width))
        yield Slots(at, end, keys.clamp(min=0), valid, every, torch.div(every, sharing, rounding_mode="floor"))
        at = end


def _flat(x):
    """(b, h, n, d) as (b * h, n, d), the last axis contiguous."""
    return (x if x.stride(3) == 1 else x.contiguous()).flatten(0, 1)


def _attend(q, k, v, mask, corner, scale):
    """Output (t, h, rows, d_v) and log-sum-exp (t, h, rows, 1) of blocks of queries over blocks of keys."""
    if _is_fused(q, v):
        given = None if mask is None or corner else mask.to(q.dtype)[None, None]
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = fused(q, k, v, is_causal=corner, attn_mask=given, scale=scale)
        lse = lse[..., None]
    else:
        scores = (q * scale) @ k.transpose(-1, -2)
        scores = scores if mask is None else scores.add_(mask)
        top = scores.amax(-1, keepdim=True)
        top = top.masked_fill_(top == -torch.inf, 0)
        weights = scores.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        out, lse = (weights @ v).div_(total.masked_fill(total == 0, 1)), total.log() + top
    if mask is not None and not corner:
        lse = lse.masked_fill((mask == -torch.inf).all(-1)[..., None], -torch.inf)
    return out, lse


def _is_fused(q, v):
    """Whether torch has an operator that keeps the scores in the caches and gives the log-sum-exp."""
    return q.device.type == "cpu" and q.shape[-1] == v.shape[-1]


def _attend_slots(q, k, v, slots, scale):
    """The same for keys fetched one by one: (h, rows, d_v) and (h, rows, 1)."""
    queries = q[slots.q_heads, slots.first : slots.end]
    scores = (_fetched(k, slots, queries) @ queries[..., None] * scale)[..., 0].masked_fill_(~slots.valid, -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    weights = scores.sub_(lse.masked_fill(lse == -torch.inf, 0)).exp_()
    return (weights[..., None, :] @ _fetched(v, slots, queries))[..., 0, :], lse


def _fetched(x, slots, like):
    return x[slots.k_heads[:, None, None], slots.keys].to(like.dtype)


def _merge(out, lse, more, more_lse):
    """Two softmaxes over different keys as one, in place."""
    both = torch.logaddexp(lse, more_lse)
    safe = both.masked_fill(both == -torch.inf, 0)
    out.mul_((lse - safe).exp_()).addcmul_(more, more_lse.sub(safe).exp_())
    lse.copy_(both)


def _compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Packed:
    """Keys and values by the view that packs them, all of them under None; and their gradients, if there are any."""

    def __init__(self, *every):
        self._every, self._grads = {None: every}, {}
        self._n = every[0].shape[1]

    def __getitem__(self, packed):
        if packed not in self._every:
            places = self._places(packed)
            self._every[packed] = tuple(x.index_select(1, places) for x in self._every[None])
        return self._every[packed]

    def grads(self, packed, wide):
        if packed not in self._grads:
            self._grads[packed] = tuple(torch.zeros(x.shape, dtype=wide, device=x.device) for x in self[packed])
        return self._grads[packed]

    def total(self, wide):
        """The gradients of all keys and values: what the packed ones got goes where they came from."""
        every = self.grads(None, wide)
        for packed, some in self._grads.items():
            for whole, part in zip(every, some) if packed else ():  # noqa: B905
                whole.index_add_(1, self._places(packed), part)
        return every

    def _places(self, packed):
        keys = torch.arange(_packed_length(self._n, packed), device=self._every[None][0].device)
        return _packed_places(keys, packed)


@without_autocast
def forward(q, k, v, inputs, chosen, scale):
    """Output (b, h, n_q, d_v) in q's dtype and log-sum-exp (b, h, n_q) in float32 (float64 for float64)."""
    wide, shape = _compute_dtype(q.dtype), q.shape[:3]
    steps = _steps(q, k, inputs, chosen, max(k.shape[3], v.shape[3]))
    q, keys = _flat(q), _Packed(*_wide_if_read(q, k, v, wide))
    out = torch.zeros(*q.shape[:2], v.shape[3], dtype=wide, device=q.device)
    lse = torch.full((*q.shape[:2], 1), -torch.inf, dtype=wide, device=q.device)
    fused = _is_fused(q, v)
    for step in steps:
        if isinstance(step, Slots):
            all_keys, all_values = keys[None]
            rows = step.q_heads, slice(step.first, step.end)
            mine, mine_lse = out[rows], lse[rows]
            _merge(mine, mine_lse, *_attend_slots(q, all_keys, all_values, step, scale))
            out[rows], lse[rows] = mine, mine_lse
            continue
        of_q, of_k = step.heads
        some_keys, some_values = keys[step.packed]
        for part in step.slabs(v.shape[3]) if fused else step.parts(MANY_PAIRS):
            tile_q = part.queries.of(q, of_q).to(wide)
            tile_k, tile_v = (part.keys.of(x, of_k).to(wide) for x in (some_keys, some_values))
            more = _attend(tile_q, tile_k, tile_v, part.mask, part.corner, scale)
            mine = [part.queries.of(x, of_q) for x in (out, lse)]
            if part.fresh and part.keys.size == step.keys.size:
                for x, y in zip(mine, more):  # noqa: B905
                    x.copy_(y)
            else:
                _merge(*mine, *more)
            for x, y in zip((out, lse), mine):  # noqa: B905
                part.queries.put(x, of_q, y)
    return out.view(*shape, v.shape[3]).to(q.dtype), lse.view(shape)


@without_autocast
def backward(q, k, v, inputs, chosen, scale, out, lse, grad_out, grad_lse):
    """Gradients of q, k and v. With p = exp(s - lse): ds = p (dO.v - dO.o + dlse)."""
    wide, shapes = _compute_dtype(q.dtype), (q.shape, k.shape, v.shape)
    steps = _steps(q, k, inputs, chosen, max(k.shape[3], v.shape[3]))
    pairs = PAIRS.get(q.device.type, MANY_PAIRS)
    keys = _Packed(*_wide_if_read(q, k, v, wide))
    q, grad_out = _flat(q), _flat(grad_out)
    delta = (grad_out.to(wide) * _flat(out)).sum(-1, keepdim=True) - grad_lse.reshape(*q.shape[:2], 1)
    norm = lse.reshape(*q.shape[:2], 1)
    norm = norm.masked_fill(norm == -torch.inf, torch.inf)
    dq = torch.zeros(q.shape, dtype=wide, device=q.device)
    for step in steps:
        if isinstance(step, Slots):
            rows = step.q_heads, slice(step.first, step.end)
            given = [x[rows].to(wide) for x in (q, grad_out, norm, delta)]
            _slots_backward(step, *given, keys[None], scale, dq, keys.grads(None, wide))
            continue
        of_q, of_k = step.heads
        for part in step.parts(pairs):
            tile_q, tile_do, tile_norm, tile_delta = (part.queries.of(x, of_q).to(wide) for x in (q, grad_out, norm, delta))
            tile_k, tile_v = (part.keys.of(x, of_k).to(wide) for x in keys[step.packed])
            scaled = tile_q * scale
            scores = scaled @ tile_k.transpose(-1, -2)
            scores = scores if part.mask is None else scores.add_(part.mask)
            p = scores.sub_(tile_norm).exp_()
            ds = (tile_do @ tile_v.transpose(-1, -2)).sub_(tile_delta).mul_(p)
            mine = part.queries.of(dq, of_q)
            part.queries.put(dq, of_q, mine.add_(ds @ tile_k, alpha=scale))
            dk, dv = keys.grads(step.packed, wide)
            part.keys.add(dk, of_k, ds.transpose(-1, -2) @ scaled)
            part.keys.add(dv, of_k, p.transpose(-1, -2) @ tile_do)
    return tuple(x.view(shape).to(q.dtype) for x, shape in zip((dq, *keys.total(wide)), shapes))  # noqa: B905


def _wide_if_read(q, k, v, wide):
    """Keys and values as `_flat` gives them, and at once in the dtype of the computation where many queries read them."""
    dtype = wide if 8 * q.shape[2] > k.shape[2] else k.dtype
    return _flat(k.to(dtype)), _flat(v.to(dtype))


def _slots_backward(slots, q, grad_out, norm, delta, keys_values, scale, dq, grads):
    """The gradients through keys fetched one by one, added to dq, dk and dv; the rest are of the queries of ``slots``."""
    some_keys, some_values = (_fetched(x, slots, q) for x in keys_values)
    scores = (some_keys @ q[..., None])[..., 0].mul_(scale).masked_fill_(~slots.valid, -torch.inf)
    p = scores.sub_(norm).exp_()
    ds = ((some_values @ grad_out[..., None])[..., 0] - delta).mul_(p).mul_(scale)
    dq[slots.q_heads, slots.first : slots.end] += (ds[..., None, :] @ some_keys)[..., 0, :]
    places = (slots.k_heads[:, None, None] * keys_values[0].shape[1] + slots.keys).flatten()
    for total, weights, rows in zip(grads, (ds, p), (q, grad_out)):  # noqa: B905
        total.view(-1, total.shape[2]).index_add_(0, places, (weights[..., None] * rows[..., None, :]).flatten(0, 2))
