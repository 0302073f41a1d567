"""Which keys selections pick, a few rows of scores at a time. Copied into emitted files, behind `support` and the scorers."""

from dataclasses import replace

import torch

from patternc.runtime.picking import best, compacted, picks
from patternc.runtime.support import Scope, prepare, without_autocast
from patternc.scorers import Sight, shared


@without_autocast
def selections(q, k, inputs, scale=None):
    """The lists of keys, or of key blocks, that selections pick: int32 (batch or 1, heads or 1, n_q, width) each."""
    batch, heads, n, device = *q.shape[:2], k.shape[2], q.device
    ready = prepare(inputs, batch, heads, n, device)
    sight = Sight(torch, q, k, float(q.shape[3] ** -0.5 if scale is None else scale), ready)
    every = (torch.arange(batch, device=device).view(-1, 1, 1, 1), torch.arange(heads, device=device).view(-1, 1, 1))
    found = []
    for group in SELECTIONS:
        mine = []
        for choices, allowed, held, per_head, width, unit, blocks, causal in group:
            sight = replace(sight, last=n - q.shape[2] if causal else None)
            scope = Scope(n, *every, {**ready, "selections": mine})
            if unit > 1:
                mine.append(select_blocks(scope, sight, choices[0], allowed, held, width, blocks))
            else:
                mine.append(select(scope, sight, choices, allowed, held, per_head, width))
        found += mine
    return found


def selection_shapes(q, k, inputs):
    """The shapes of what `selections` returns."""
    batch, heads, n_q, _ = q.shape
    found = []
    for group in SELECTIONS:
        mine = []
        for choices, _, _, per_head, width, unit, *_ in group:
            if unit > 1:
                axes = block_axes(choices[0], inputs, batch, heads, k.shape[1])
            else:
                axes = selection_axes(choices, {**inputs, "selections": mine}, per_head, batch, heads, k.shape[1])
            mine.append(torch.empty((*axes, n_q, min(width, -(-k.shape[2] // unit))), dtype=torch.int32, device="meta"))
        found += [t.shape for t in mine]
    return found


def block_axes(choice, inputs, batch, heads, key_heads):
    """The batches of a list of blocks, and its heads: all, the key heads if those of a group share it, or 1."""
    batches, of = score_axes(choice[0], choice[3], inputs, batch, heads, key_heads)
    given = max(
        [batches, *(inputs[name].shape[0] for name, kind, _ in INPUTS if kind == "document" and inputs[name].dim() > 1)]
    )
    return batch if given > 1 else 1, of


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
    scored = [scorer.rows(replace(sight, together=share != "head")) for scorer, _, _, share, _ in choices]
    chunk = max(1, memory // (n * most_scores([scorer for scorer, *_ in choices], scope.inputs, batch, heads)))
    keys = torch.arange(n, device=device)[None, :]
    parts = []
    for start in range(0, n_q, chunk):
        stop = min(n_q, start + chunk)
        q = torch.arange(n - n_q + start, n - n_q + stop, device=device)[:, None]
        may = picked = grid(allowed(scope, q, keys), stop - start, n)
        known = grid(held(scope, q, keys), stop - start, n)
        for earlier in scope.inputs["selections"]:
            known = known | listed(earlier[:, :, start:stop], n)
        (scorer, k, block, share, forced), *others = choices
        if not others and block == 1 and not (scorer.finite and n <= k):
            scores = shared(scored[0](start, stop), share, heads, key_heads)
            least = forced and grid(forced(scope, q, keys), stop - start, n) & may
            parts.append(fitting(scores, may, least, known, k, width, heads).expand(*axes, -1, -1))
            continue
        for rows, (scorer, k, block, share, forced) in zip(scored, choices):  # noqa: B905
            if scorer.finite and -(-n // block) <= k:
                continue  # all candidates are among the best, whatever their scores
            scores = shared(rows(start, stop), share, heads, key_heads)
            scores = spread(scores, may.shape[1])
            found = best_keys(scores, may, k, block, forced and grid(forced(scope, q, keys), stop - start, n))
            picked = picked & spread(found, heads)
        parts.append(compacted(picked & ~known, width).expand(*axes, -1, -1))
    return torch.cat(parts, 2)


def select_blocks(scope, sight, choice, allowed, held, width, blocks, memory=1 << 26):
    """The key blocks that one choice picks for each query: int32, with the axes of `block_axes`, n_q and width.

    They ascend, and -1 stands where there are fewer. Blocks whose allowed keys are all ``held`` are left out. ``blocks`` says
    of queries and blocks, each a function (scope, q, block), which are candidates, which are forced (or None), and which are
    not held; without it that is asked of all keys.
    """
    (batch, heads, n_q, _), (_, key_heads, n, _), device = sight.queries.shape, sight.keys.shape, sight.keys.device
    scorer, k, size, share, forced = choice
    axes = block_axes(choice, scope.inputs, batch, heads, key_heads)
    count = -(-n // size)
    width = min(width, count)
    if 0 in (*axes, batch, n_q, width):
        return torch.empty((*axes, n_q, width), dtype=torch.int32, device=device)
    scope = Scope(n, scope.batch[: axes[0]], scope.head[:1], scope.inputs)
    scored, keys = scorer.rows(replace(sight, together=share != "head")), torch.arange(n, device=device)[None, :]
    each = torch.arange(count, device=device)[None, :]
    every = scorer.finite and count <= k
    wide = n if blocks is None or (scorer.span == 1 and not every) else count
    chunk = max(1, memory // (wide * most_scores([scorer], scope.inputs, batch, heads)))
    parts = []
    for start in range(0, n_q, chunk):
        stop = min(n_q, start + chunk)
        q = torch.arange(n - n_q + start, n - n_q + stop, device=device)[:, None]
        if blocks:
            some, least, beyond = (ask and grid(ask(scope, q, each), stop - start, count) for ask in blocks)
        else:
            may = grid(allowed(scope, q, keys), stop - start, n)
            some, beyond = of_blocks(may, size), of_blocks(may & ~held(scope, q, keys), size)
            least = forced and of_blocks(may & grid(forced(scope, q, keys), stop - start, n), size)
        if not every:
            scores = shared(scored(start, stop), share, heads, key_heads)
            if scores.shape[-1] != count:
                if blocks:
                    may = grid(allowed(scope, q, keys), stop - start, n)
                scores = best_of_blocks(scores, may, size)
            parts.append(picks(scores, some, least, ~beyond, k, width).expand(*axes, -1, -1))
            continue
        parts.append(compacted(some & beyond, width).expand(*axes, -1, -1))
    return torch.cat(parts, 2)


def fitting(scores, may, forced, held, most, width, heads):
    """`picks`, where some of what it is given has all heads and some has one for a group: lists for all heads, or for one."""
    own = max(t.shape[1] for t in (scores, may, held))
    return spread(picks(spread(scores, own), may, forced, held, most, width), heads)


def spread(t, heads):
    """What groups of heads have, for each of the heads; of one head for all, or of as many heads, as it is."""
    return t.repeat_interleave(heads // t.shape[1], 1) if 1 < t.shape[1] < heads else t


def most_scores(scorers, inputs, batch, heads):
    """For how many batches and heads together there are scores at a time."""
    return max(batches * of for batches, of in (scorer.axes(batch, heads, inputs) for scorer in scorers))


def grid(mask, rows, n):
    """A mask with the axes batch, head, query and key (or block), the last two of them whole."""
    return mask[(None,) * (4 - mask.dim())].expand(-1, -1, rows, n)


def of_blocks(mask, size):
    """Whether a mask over keys holds one of each block of ``size`` keys."""
    return torch.nn.functional.pad(mask, (0, -mask.shape[-1] % size)).unflatten(-1, (-1, size)).any(-1)


def best_of_blocks(scores, may, size):
    """The best score of the keys of each block that may be picked."""
    pad = -may.shape[-1] % size
    scores, may = (torch.nn.functional.pad(t, (0, pad)).unflatten(-1, (-1, size)) for t in (scores, may))
    return scores.masked_fill(scores.isnan() | ~may, -torch.inf).amax(-1)


def best_keys(scores, may, k, block, forced=None):
    """The k best allowed key blocks of each row, as a mask over keys: forced ones first, ties to the lowest key."""
    n = may.shape[-1]
    if block == 1:
        return best(scores, may, k, forced if forced is None else forced & may)
    if scores.shape[-1] == n:
        scores = best_of_blocks(scores, may, block)
    found = best(scores, of_blocks(may, block), k, forced if forced is None else of_blocks(forced & may, block))
    return found.repeat_interleave(block, -1)[..., :n]


def listed(indices, n):
    """The mask over n keys of a list of keys."""
    found = torch.zeros(*indices.shape[:3], n + 1, dtype=torch.bool, device=indices.device)
    return found.scatter_(-1, torch.where(indices < 0, n, indices).long(), True)[..., :n]
