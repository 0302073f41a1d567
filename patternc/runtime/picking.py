"""The best-scoring keys of each row, in torch. Copied into emitted files, behind `selecting`."""

import torch


def picks(scores, may, forced, held, most, width):
    """The ``most`` best-scoring candidates of each row, as ascending int32 lists (b, h, rows, width), -1 where there are fewer.

    scores: (b, h, rows, m); of equal ones the first wins, and -inf or NaN is never picked. ``may`` are the candidates; of them
    ``forced`` ones (or None) are picked first, all of them, whatever their scores. What is picked and ``held`` is left out.
    """
    return compacted(best(scores, may, most, forced) & ~held, width)


def best(scores, may, k, forced=None):
    """The k best of each row that may be picked, as a mask: forced ones first, ties to the lowest."""
    scores, most = scores.masked_fill(scores.isnan() | ~may, -torch.inf), min(k, may.shape[-1])
    if forced is None:
        free, last = most, scores.topk(most, -1).values[..., -1:]
    else:
        scores = scores.masked_fill(forced, -torch.inf)
        free = (most - forced.sum(-1, keepdim=True)).clamp(min=0).expand(*scores.shape[:-1], 1)
        last = scores.topk(most, -1).values.gather(-1, (free - 1).clamp(min=0))
    above, level = scores > last, scores == last
    free = free - above.sum(-1, keepdim=True)
    found = (above | (level & (level.cumsum(-1) <= free))) & (scores > -torch.inf)
    return found if forced is None else found | forced


def compacted(mask, width):
    """The set positions of each row, ascending, padded with -1 to a width."""
    place = torch.where(mask, mask.cumsum(-1) - 1, width)
    keys = torch.arange(mask.shape[-1], device=mask.device, dtype=torch.int32).expand(mask.shape)
    out = torch.full((*mask.shape[:-1], width + 1), -1, dtype=torch.int32, device=mask.device)
    return out.scatter_(-1, place.clamp(max=width), keys)[..., :width]
