"""Run-time support for emitted kernels. Emitters copy this file into what they emit, so it may import torch only."""

import torch


def check_call(q, k, v):
    """Refuse queries, keys and values that do not fit together; the messages name the argument and what it wants."""
    for name, t in (("q", q), ("k", k), ("v", v)):
        if not isinstance(t, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
        if t.dim() != 4:
            raise ValueError(f"{name} must have shape (batch, heads, length, head_dim), got {tuple(t.shape)}")
        if t.device != q.device:
            raise ValueError(f"{name} is on {t.device} and q on {q.device}; they must be on one device")
        if t.dtype != q.dtype:
            raise TypeError(f"{name} is {t.dtype} and q is {q.dtype}; they must have one dtype")
    if not q.dtype.is_floating_point:
        raise TypeError(f"q must be floating point, got {q.dtype}")
    b, h, n_q, d = q.shape
    if d == 0:
        raise ValueError("q must have a head_dim of at least 1, got 0")
    if k.shape[0] != b or v.shape[0] != b:
        raise ValueError(f"q, k and v must have one batch size, got {b}, {k.shape[0]} and {v.shape[0]}")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k and v must have the same heads and length, got {tuple(k.shape)} and {tuple(v.shape)}")
    if k.shape[3] != d:
        raise ValueError(f"q and k must have one head_dim, got {d} and {k.shape[3]}")
    if k.shape[1] == 0 or h % k.shape[1]:
        raise ValueError(f"the {h} query heads must be a multiple of the {k.shape[1]} key heads")
    if n_q > k.shape[2]:
        raise ValueError(f"there are {n_q} queries and {k.shape[2]} keys; queries are the last positions, so at most as many")


def without_autocast(function):
    """A function of q and more that keeps the precision it was written with."""

    def run(q, *rest):
        if not torch.is_autocast_enabled(q.device.type):
            return function(q, *rest)
        with torch.autocast(q.device.type, enabled=False):
            return function(q, *rest)

    return run


def documents(name, given, batch, n, device):
    """Document ids of shape (batch or 1, n), int32, from ids of that shape or (n,), or from 1-D cu_seqlens."""
    check_input(name, given, device)
    if given.is_floating_point() or given.dtype == torch.bool:
        raise TypeError(f"'{name}' must hold integers (document ids or cu_seqlens), got {given.dtype}")
    if given.dim() == 1 and given.shape[0] != n:
        positions = torch.arange(n, device=device, dtype=given.dtype)
        given = torch.searchsorted(given.contiguous(), positions, right=True)
    if given.dim() == 1:
        given = given[None]
    if given.dim() != 2 or given.shape[1] != n or given.shape[0] not in (1, batch):
        raise ValueError(
            f"'{name}' must be document ids of shape ({n},) or ({batch}, {n}), or 1-D cu_seqlens, got {tuple(given.shape)}"
        )
    return given.to(torch.int32).contiguous()


def document_bounds(ids):
    """The first position of each position's document, and the position after its last: two int32 (batch, n)."""
    first = torch.searchsorted(ids, ids, right=False)
    end = torch.searchsorted(ids, ids, right=True)
    return first.to(torch.int32), end.to(torch.int32)


def table(name, given, batch, heads, n, block, device):
    """A block table of shape (batch or 1, heads or 1, blocks, blocks), bool, from one with fewer leading axes."""
    check_input(name, given, device)
    blocks = -(-n // block)
    while given.dim() < 4:
        given = given[None]
    shape = tuple(given.shape)
    if given.dim() != 4 or shape[2:] != (blocks, blocks) or shape[0] not in (1, batch) or shape[1] not in (1, heads):
        raise ValueError(
            f"'{name}' must have shape ({batch} or 1, {heads} or 1, {blocks}, {blocks}), leading axes optional: "
            f"{blocks} blocks of {block} for {n} keys; got {shape}"
        )
    return given.to(torch.bool).contiguous()


def check_input(name, given, device):
    """Refuse a runtime input that is no tensor, or on another device."""
    if not isinstance(given, torch.Tensor):
        raise TypeError(f"'{name}' must be a tensor, got {type(given).__name__}")
    if given.device != device:
        raise ValueError(f"'{name}' is on {given.device} and q on {device}; they must be on one device")


class Scope:
    """The pairs in view: batch (b, 1, 1, 1) and head (h, 1, 1) indices, the length, and the runtime inputs by name."""

    def __init__(self, n, batch, head, inputs):
        self.n, self.batch, self.head, self.inputs = n, batch, head, inputs

    def pick(self, tensor):
        """Batch and head indices into a tensor whose leading axes may be 1."""
        return self.batch if tensor.shape[0] > 1 else 0 * self.batch, self.head if tensor.shape[1] > 1 else 0 * self.head


def in_table(scope, name, block, q, k):
    """Whether the block table holds each pair."""
    given = scope.inputs[name]
    batch, head = scope.pick(given)
    return given[batch, head, q // block, k // block]


def same_document(scope, name, q, k):
    """Whether each pair lies in one document."""
    ids = scope.inputs[name][:, None]
    batch, head = scope.pick(ids)
    return ids[batch, head, q] == ids[batch, head, k]


def table_blocks(scope, name, row):
    """The key blocks that the block table lists for any of the query blocks ``row``."""
    given = scope.inputs[name]
    batch, head = scope.pick(given)
    return torch.nonzero(given[batch, head, row.unique()[:, None]].flatten(0, -2).any(0))


def values_at(ranks, counts, starts, steps):
    """The values at ``ranks`` of loops start + step * t, t < count, laid end to end; -1 at negative ranks."""
    found = torch.full_like(ranks, -1)
    rank = torch.where(ranks < 0, 1 << 40, ranks)
    for count, start, step in zip(counts, starts, steps):  # noqa: B905
        found = torch.where((rank >= 0) & (rank < count), start + step * rank, found)
        rank = rank - count
    return found


def merged_values_at(ranks, counts, starts, steps, n):
    """The values at ``ranks`` of all loops together, ascending, where loops may interleave; -1 at negative ranks."""
    found = torch.full_like(ranks, -1)
    for bit in reversed(range((n - 1).bit_length())):
        further = found + (1 << bit)
        reached = [
            torch.minimum(torch.where(further < start, 0, (further - start) // step + 1), count)
            for count, start, step in zip(counts, starts, steps)  # noqa: B905
        ]
        found = torch.where(sum(reached) <= ranks, further, found)
    return torch.where((ranks >= 0) & (ranks < sum(counts)), found + 1, -1)


def selected_rows(scope, index, q):
    """The keys of a selection for queries ``q`` (rows, 1): int64 (b, h, rows, width)."""
    chosen = scope.inputs["selections"][index]
    rows = chosen[:, :, q[:, 0] - scope.n + chosen.shape[2]]
    batch, head = scope.pick(rows)
    return rows[batch.view(-1, 1), head.view(-1)].long()


def where(condition, a, b):
    """Choice by a number, or elementwise by a tensor."""
    return torch.where(condition, a, b) if isinstance(condition, torch.Tensor) else a if condition else b


def tensor_min(a, b):
    """The minimum of numbers, or elementwise of tensors."""
    return where(a < b, a, b)


def tensor_max(a, b):
    """The maximum of numbers, or elementwise of tensors."""
    return where(a < b, b, a)


def head_ids(runs, period, heads, device):
    """The heads h < heads with h % period in one of the runs (first, count)."""
    inside = [h for h in range(heads) if any(first <= h % period < first + count for first, count in runs)]
    return torch.tensor(inside, device=device, dtype=torch.long)


def prepare(inputs, batch, heads, n, device, scores=True):
    """The runtime inputs as the kernels take them, by name; scores (where they are needed) stay as they are."""
    ready = {}
    for name, kind, block in INPUTS:
        if kind == "scores" and not scores:
            continue
        if name not in inputs:
            raise ValueError(f"the pattern needs the runtime input '{name}': pass {name}=...")
        given = inputs[name]
        if kind == "document":
            ready[name] = documents(name, given, batch, n, device)
            ready[f"{name}:bounds"] = document_bounds(ready[name])
        elif kind == "layout":
            ready[name] = table(name, given, batch, heads, n, block, device)
        else:
            ready[name] = given
    unknown = set(inputs) - {name for name, _, _ in INPUTS}
    if unknown:
        raise TypeError(f"the pattern has no runtime input '{sorted(unknown)[0]}'")
    return ready
