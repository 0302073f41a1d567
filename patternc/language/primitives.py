"""The primitives. One decorated function each: the checked arguments come in, a condition or a runtime edge comes out.

A condition is text in the language's own `where(...)`: the primitive *is* that condition. ``oracle`` says the same once
more in plain Python, for one pair or elementwise for arrays; the tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from patternc.language.words import BadArgument, Count, Input, Positions, Scores, Size, Static, Word
from patternc.relation import Relation
from patternc.scalar import FALSE, K, Q, op
from patternc.scorers import Unfit
from patternc.terms import MAX_DRAWS, Choice, Document, Filter, Layout, Random, Share, TopK

Result: TypeAlias = str | Filter | Choice


@dataclass(frozen=True)
class Primitive(Word):
    """A word of the language that is a pattern."""

    oracle: Callable[..., Any] | None


def _define(example: str, oracle: Callable[..., Any] | None = None) -> Callable[[Callable[..., Result]], Primitive]:
    return lambda build: Primitive(build.__name__.rstrip("_"), build, example, oracle)


def _inside(name: str, positions: Positions) -> str:
    def end(position: int) -> str:
        return str(position) if position >= 0 else f"n - {-position}"

    return " or ".join(f"{end(first)} <= {name} <= {end(last)}" for first, last in positions)


def holds(x: Any, n: int, positions: Positions) -> Any:
    """Whether position ``x`` (an integer or an array) is in a list, in plain Python: for the oracles."""
    found = x < 0
    for first, last in positions:
        found = found | ((first + n * (first < 0) <= x) & (x <= last + n * (last < 0)))
    return found


@_define("full", lambda q, k, n: (q == q) & (k == k))
def full() -> str:
    """Every pair."""
    return "true"


@_define("none", lambda q, k, n: (q != q) & (k != k))
def none() -> str:
    """No pair."""
    return "false"


@_define("self", lambda q, k, n: q == k)
def self_() -> str:
    """A query reads its own position: q = k."""
    return "q == k"


@_define("causal", lambda q, k, n: k <= q)
def causal() -> str:
    """No key after the query: k <= q."""
    return "k <= q"


def _window_oracle(q: Any, k: Any, n: int, w: int | None = None, left: int = 0, right: int = 0, dilation: int = 1) -> Any:
    left, right = (left, right) if w is None else (w - 1, w - 1)
    steps, rest = (q - k) // dilation, (q - k) % dilation
    return (rest == 0) & (-right <= steps) & (steps <= left)


@_define("window(4)", _window_oracle)
def window(w: Size | None = None, *, left: Count | None = None, right: Count | None = None, dilation: Size = Size(1)) -> str:
    """The nearest keys: |q - k| < w, or -right <= q - k <= left; with a dilation d, the same number of keys, d apart.

    `causal & window(4096)` is the sliding window of Mistral 7B (Jiang et al. 2023): 4,096 keys, the query's own included.
    `window(left=a, right=b)` is FlashAttention's `window_size=(a, b)`.
    """
    if w is None and left is None and right is None:
        raise BadArgument("", "'window' needs a size", "window(4096), or window(left=4095, right=0)")
    if w is not None and (left is not None or right is not None):
        given = "left" if left is not None else "right"
        raise BadArgument(given, f"'window' takes a size or left/right, not both: '{given}' came after a size")
    a, b = ((left or 0) * dilation, (right or 0) * dilation) if w is None else ((w - 1) * dilation, (w - 1) * dilation)
    band = f"-{b} <= q - k <= {a}"
    return band if dilation == 1 else f"{band} and (q - k) % {dilation} == 0"


@_define("local(4)", lambda q, k, n, w: abs(q - k) <= w // 2)
def local(w: Size) -> str:
    """Half of w to either side: |q - k| <= w // 2. Longformer's (Beltagy et al. 2020) and Hugging Face's `attention_window`."""
    return f"-{w // 2} <= q - k <= {w // 2}"


@_define("stride(3)", lambda q, k, n, s: (q - k) % s == 0)
def stride(s: Size) -> str:
    """Every s-th key, counted from the query: (q - k) % s = 0. Sparse Transformer's strided head (Child et al. 2019)."""
    return f"(q - k) % {s} == 0"


@_define("summary(4)", lambda q, k, n, l, c=1, slot=0: (l - (slot + 1) * c <= k % l) & (k % l < l - slot * c))
def summary(l: Size, c: Size = Size(1), slot: Count = Count(0)) -> str:
    """The last c keys of every l: l - (slot+1)c <= k % l < l - slot*c. Sparse Transformer's fixed head (Child et al. 2019)."""
    if (slot + 1) * c > l:
        raise BadArgument("slot" if slot else "c", f"(slot + 1) * c is {(slot + 1) * c}, which is over l = {l}")
    return f"{l - (slot + 1) * c} <= k % {l} < {l - slot * c}"


@_define("chunk(4)", lambda q, k, n, c: q // c == k // c)
def chunk(c: Size) -> str:
    """Keys of the query's own chunk: q // c = k // c. Llama 4's chunked attention."""
    return f"q // {c} == k // {c}"


@_define("blocks(2, 1, 0)", lambda q, k, n, b, left, right: (-right <= q // b - k // b) & (q // b - k // b <= left))
def blocks(b: Size, left: Count, right: Count) -> str:
    """Neighbouring blocks: -right <= q // b - k // b <= left. BigBird's window (Zaheer et al. 2020) is blocks(64, 1, 1)."""
    return f"-{right} <= q // {b} - k // {b} <= {left}"


@_define("sinks(2)", lambda q, k, n, s: k < s)
def sinks(s: Size) -> str:
    """The first s keys: k < s. The attention sinks of StreamingLLM (Xiao et al. 2023)."""
    return f"k < {s}"


@_define("rows([0])", lambda q, k, n, G: holds(q, n, G) & (k >= 0))
def rows(G: Positions) -> str:
    """The listed queries read every key: q in G."""
    return _inside("q", G)


@_define("columns([0])", lambda q, k, n, G: holds(k, n, G) & (q >= 0))
def columns(G: Positions) -> str:
    """The listed keys are read by every query: k in G."""
    return _inside("k", G)


@_define("global([0])", lambda q, k, n, G: holds(q, n, G) | holds(k, n, G))
def global_(G: Positions) -> str:
    """The listed positions read everything and are read by everything: q in G or k in G. Longformer (Beltagy et al. 2020)."""
    return f"{_inside('q', G)} or {_inside('k', G)}"


@_define("random(2)")
def random(r: Size, block: Size = Size(1), seed: Count = Count(0), pool: Size | None = None) -> Random:
    """r distinct keys (key blocks) for each query (query block), drawn from those that the static conjuncts allow.

    A pure function of (seed, head, row, draw); with fewer than r candidates, all are taken. `pool=p` draws from the first
    p candidates only. BigBird's random blocks (Zaheer et al. 2020) are random(3, block=64).
    """
    if r > MAX_DRAWS:
        raise BadArgument("r", f"'random' draws at most {MAX_DRAWS} keys for each query, got {r}")
    return Random(r, block, seed, pool)


@_define("layout(table, 2)")
def layout(name: Input, block: Size) -> Layout:
    """A boolean block table given at run time: name[q // block, k // block]. DeepSpeed's sparse attention layouts."""
    return Layout(name, block)


@_define("document(ids)")
def document(ids: Input) -> Document:
    """Packed sequences: ids[q] = ids[k]; non-decreasing ids, or cu_seqlens, given at run time."""
    return Document(ids)


@_define("topk(scores, 2)")
def topk(scorer: Scores, k: Size, block: Size = Size(1), *, share: Share = "head", force: Static | None = None) -> TopK:
    """The k best-scoring keys (key blocks) of each query, among those that the conjuncts beside it allow.

    `causal & topk(indexer(), 2048)` is the selection of DeepSeek Sparse Attention (DeepSeek-V3.2, 2025). With fewer than k
    candidates, all are taken; ties go to the lowest key; a score of -inf or NaN is never picked. `share` adds up the scores
    of the query heads of a group (one key head's) or of all of a query, which then pick alike; the candidates that `force`
    holds are always picked, and count towards k.
    """
    try:
        scorer = scorer.of_blocks(block)
    except Unfit as error:
        raise BadArgument("block", str(error), error.hint) from None
    if force is None:
        return TopK(scorer, k, block, share)
    alike = Relation.where(op("==", op("//", Q, block), op("//", K, block)))
    forced = force.relation.then(alike) if block > 1 else force.relation
    return TopK(scorer, k, block, share, FALSE if forced.is_empty() else forced.condition, force.text)


PRIMITIVES = MappingProxyType({p.name: p for p in tuple(globals().values()) if isinstance(p, Primitive)})
"""Every primitive by name."""
