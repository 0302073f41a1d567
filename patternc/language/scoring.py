"""The scorers that the language knows, as `topk` takes them. One decorated function each, as for the primitives."""

from __future__ import annotations

from types import MappingProxyType

from patternc.language.words import BadArgument, Input, Scores, Size, Word, word
from patternc.scorers import Compressed, Exact, Indexer, MaxPool, MeanPool, Scorer


@word("topk(exact, 64)")
def exact() -> Scorer:
    """q . k, times the call's scale: the attention scores themselves."""
    return Exact()


@word("topk(meanpool(64), 16, block=64)")
def meanpool(block: Size) -> Scorer:
    """q times the mean of a key block, for every block. MoBA's gate (Lu et al. 2025).

    The mean is of all keys of the block, also of those that the query may not read.
    """
    return MeanPool(block)


@word("topk(maxpool(exact, 64), 16, block=64)")
def maxpool(scorer: Scores, block: Size) -> Scorer:
    """The best score of a key block's keys, also of those that the query may not read, by another scorer."""
    if scorer.span == 0 or block % scorer.span:
        what = f"scores blocks of {scorer.span} keys, which do not make up" if scorer.span else "has no scores of keys for"
        raise BadArgument("scorer", f"'{scorer}' {what} blocks of {block}", "as in maxpool(exact, 64)")
    return MaxPool(scorer, block)


@word("topk(indexer(heads=64, dim=128), 2048)")
def indexer(heads: Size = Size(64), dim: Size = Size(128), name: Input = Input("indexer")) -> Scorer:
    """sum_j w_j relu(q_j . k), with one key head: the lightning indexer of DeepSeek-V3.2 (DeepSeek-AI 2025).

    Its runtime inputs are indexer_q (batch, heads, n, dim), indexer_k (batch, 1, n, dim) and indexer_w (batch, heads, n);
    `name` is what stands before the underscore. The scores are the same for all query heads.
    """
    return Indexer(heads, dim, name)


@word("topk(compressed(32, 16), 16, block=64)")
def compressed(l: Size, d: Size, keys: Input | None = None, lse: Input | None = None) -> Scorer:
    """How much attention a key block gets from a query that attends to compressed keys. NSA (Yuan et al. 2025).

    Compressed key i is the mean of keys i * d to i * d + l - 1, or given as the runtime input `keys`. The log-sum-exp of that
    attention may be given as the runtime input `lse` (batch, heads, n_q).
    """
    if l % d:
        raise BadArgument("d", f"l = {l} is no multiple of d = {d}", f"as in compressed({2 * d}, {d})")
    return Compressed(l, d, keys, lse)


SCORERS = MappingProxyType({w.name: w for w in tuple(globals().values()) if isinstance(w, Word)})
"""Every scorer that the language knows, by name."""
