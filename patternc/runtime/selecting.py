"""Which keys selections pick, a few rows of scores at a time. Copied into emitted files, behind `support` and the scorers."""

import torch

from patternc.runtime.support import Scope, prepare, without_autocast
from patternc.scorers import Sight, shared


@without_autocast
def selections(q, k, inputs, scale=None):
    """The lists of keys that the pattern's selections pick: int32 (batch or 1, heads or 1, n_q, width) each."""
    batch, heads, n, device = *q.shape[:2], k.shape[2], q.device
    ready = prepare(inputs, batch, heads, n, device)
    sight = Sight(torch, q, k, float(q.shape[3] ** -0.5 if scale is None else scale), ready)
    every = (torch.arange(batch, device=device).view(-1, 1, 1, 1), torch.arange(heads, device=device).view(-1, 1, 1))
    found = []
    for group in SELECTIONS:
        mine = []
        for choices, allowed, held, per_head, width in group:
            scope = Scope(n, *every, {**ready, "selections": mine})
            mine.append(select(scope, sight, choices, allowed, held, per_head, width))
        found += mine
    return found


def selection_shapes(q, k, inputs):
    """The shapes of what `selections` returns."""
    batch, heads, n_q, _ = q.shape
    found = []
    for group in SELECTIONS:
        mine = []
        for choices, _, _, per_head, width in group:
            axes = selection_axes(choices, {**inputs, "selections": mine}, per_head, batch, heads, k.shape[1])
            mine.append(torch.empty((*axes, n_q, min(width, k.shape[2])), dtype=torch.int32, device="meta"))
        found += [t.shape for t in mine]
    return found


def selection_axes(choices, inputs, per_head, batch, heads, key_heads):
    """The batches and heads of a selection's list: 1 where nothing in it depends on them."""
    axes = [score_axes(scorer, share, inputs, batch, heads, key_heads) for scorer, _, _, share, _ in choices]
    for name, kind, _ in INPUTS:
        if kind == "document":
            axes.append((inputs[name].shape[0] if inputs[name].dim() > 1 else 1, 1))
        elif kind == "layout":
            axes.append(((1,) * (4 - inputs[name].dim()) + tuple(inputs[name].shape))[:2])
    axes += [earlier.shape[:2] for earlier in inputs["selections"]]
    batches, of = (max(sizes) for sizes in zip(*axes))  # noqa: B905
    return batch if batches > 1 else 1, heads if per_head or of > 1 else 1


def score_axes(scorer, share, inputs, batch, heads, key_heads):
    """For how many batches and heads a choice has scores of its own."""
    batches, of = scorer.axes(batch, heads, inputs)
    return batches, 1 if share == "query" else min(of, key_heads) if share == "group" else of


def select(scope, sight, choices, allowed, held, per_head, width, memory=1 << 26):
    """The keys that all choices pick for each query: int32 (batch or 1, heads or 1, n_q, width), ascending, -1 where fewer.

    choices: (scorer, k, block, share, forced) each; ``allowed(scope, q, k)`` is what may be picked, ``forced`` (or None) what
    of it is picked whatever its score, and ``held`` what other terms hold already (a list of earlier selections is excluded
    too). Rows go in chunks that hold about ``memory`` scores at a time.
    """
    (batch, heads, n_q, _), (_, key_heads, n, _), device = sight.queries.shape, sight.keys.shape, sight.keys.device
    axes = selection_axes(choices, scope.inputs, per_head, batch, heads, key_heads)
    width = min(width, n)
    if 0 in (*axes, batch, n_q, width):
        return torch.empty((*axes, n_q, width), dtype=torch.int32, device=device)
    scope = Scope(n, scope.batch[: axes[0]], scope.head[: axes[1]], scope.inputs)  # what does not differ is asked once
    scored = [scorer.rows(sight) for scorer, *_ in choices]
    chunk = max(1, memory // (n * batch * heads))
    keys = torch.arange(n, device=device)[None, :]
    parts = []
    for start in range(0, n_q, chunk):
        stop = min(n_q, start + chunk)
        q = torch.arange(n - n_q + start, n - n_q + stop, device=device)[:, None]
        may = picked = grid(allowed(scope, q, keys), stop - start, n)
        for rows, (scorer, k, block, share, forced) in zip(scored, choices):  # noqa: B905
            if scorer.finite and -(-n // block) <= k:
                continue  # all candidates are among the best, whatever their scores
            scores = shared(rows(start, stop), share, heads, key_heads)
            if scores.shape[1] > 1 and may.shape[1] not in (1, scores.shape[1]):
                scores = scores.repeat_interleave(heads // scores.shape[1], 1)
            best = best_keys(scores, may, k, block, forced and grid(forced(scope, q, keys), stop - start, n))
            picked = picked & (best if best.shape[1] in (1, heads) else best.repeat_interleave(heads // best.shape[1], 1))
        picked = picked & ~held(scope, q, keys)
        for earlier in scope.inputs["selections"]:
            picked = picked & ~listed(earlier[:, :, start:stop], n)
        parts.append(compacted(picked, width).expand(*axes, -1, -1))
    return torch.cat(parts, 2)


def grid(mask, rows, n):
    """A mask with the axes batch, head, query and key, the last two of them whole."""
    return mask[(None,) * (4 - mask.dim())].expand(-1, -1, rows, n)


def best_keys(scores, may, k, block, forced=None):
    """The k best allowed key blocks of each row, as a mask over keys: forced ones first, ties to the lowest key."""
    n = may.shape[-1]
    blocks = -(-n // block)
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    if forced is not None:
        forced = forced & may
    if block > 1:
        pad = blocks * block - n
        some = torch.nn.functional.pad(may, (0, pad)).unflatten(-1, (blocks, block))
        if scores.shape[-1] == n:
            scores = torch.nn.functional.pad(scores, (0, pad)).unflatten(-1, (blocks, block))
            scores = scores.masked_fill(~some, -torch.inf).amax(-1)
        may = some.any(-1)
        if forced is not None:
            forced = torch.nn.functional.pad(forced, (0, pad)).unflatten(-1, (blocks, block)).any(-1)
    scores, most = scores.masked_fill(~may, -torch.inf), min(k, blocks)
    if forced is None:
        free, last = most, scores.topk(most, -1).values[..., -1:]
    else:
        scores = scores.masked_fill(forced, -torch.inf)
        free = (most - forced.sum(-1, keepdim=True)).clamp(min=0).expand(*scores.shape[:-1], 1)
        last = scores.topk(most, -1).values.gather(-1, (free - 1).clamp(min=0))
    above, level = scores > last, scores == last
    free = free - above.sum(-1, keepdim=True)
    best = (above | (level & (level.cumsum(-1) <= free))) & (scores > -torch.inf)
    if forced is not None:
        best = best | forced
    return best.repeat_interleave(block, -1)[..., :n] if block > 1 else best


def listed(indices, n):
    """The mask over n keys of a list of keys."""
    found = torch.zeros(*indices.shape[:3], n + 1, dtype=torch.bool, device=indices.device)
    return found.scatter_(-1, torch.where(indices < 0, n, indices).long(), True)[..., :n]


def compacted(mask, width):
    """The set positions of each row, ascending, padded with -1 to a width."""
    place = torch.where(mask, mask.cumsum(-1) - 1, width)
    keys = torch.arange(mask.shape[-1], device=mask.device, dtype=torch.int32).expand(mask.shape)
    out = torch.full((*mask.shape[:-1], width + 1), -1, dtype=torch.int32, device=mask.device)
    return out.scatter_(-1, place.clamp(max=width), keys)[..., :width]
