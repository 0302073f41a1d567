"""A pattern as a graph of networkx: position by position where it is small, and block by block to draw it whole.

An edge goes from a query to a key that it reads. Needs networkx: `pip install 'patternc[graph]'`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patternc.dense import Evaluator, check_dense
from patternc.language.printer import show
from patternc.language.resolve import chooses, joined, select
from patternc.language.syntax import Chain, Expression
from patternc.pattern import Pattern
from patternc.relation import BudgetExceeded, Loop, Relation
from patternc.scalar import evaluate
from patternc.terms import Meaning

if TYPE_CHECKING:
    import networkx as nx  # type: ignore[import-untyped, unused-ignore]

    Graph: TypeAlias = nx.DiGraph

MAX_NODES = 4_096
MAX_EDGES = 200_000
MAX_COUNTED = 1 << 27
_PIECE = 1 << 22

Counts: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]


def graph(pattern: Pattern, n: int, head: int | None = None, *, layer: int | None = None, **inputs: Any) -> Graph:
    """The pairs of one layer at n as a directed graph: of one head, or of all heads united.

    Every position is a node, with ``reads`` and ``read_by``, how many it reads and is read by. An edge from q to k has the
    ``distance`` q - k; ``heads``, the heads of the period that hold it; and ``terms``, the parts of the expression's topmost
    union that hold it, as text: `window(4)` and `sinks(1)` of `causal & (window(4) | sinks(1))`.

    Args:
        inputs: the runtime inputs by name, as for `Pattern.mask`.

    Raises:
        ImportError: networkx is not installed.
        PatternError: the layers differ and ``layer`` is not given.
        ValueError: n is over 4,096, or there are over 200,000 pairs; `block_graph` has no such limits.
    """
    nx = _networkx()
    if n > MAX_NODES:
        raise ValueError(f"n = {n:,} is too large for a graph of positions (the limit is {MAX_NODES:,}); see block_graph")
    heads = _heads(pattern, head, layer)
    masks = {h: pattern.mask(n, h, layer=layer, **inputs) for h in heads}
    union = reduce(np.logical_or, masks.values())
    _check_edges(int(union.sum()))
    found: Graph = nx.DiGraph(n=n, pattern=str(pattern))
    reads, read_by = union.sum(1), union.sum(0)
    found.add_nodes_from((x, {"reads": int(reads[x]), "read_by": int(read_by[x])}) for x in range(n))
    for q, k in np.argwhere(union).tolist():
        found.add_edge(q, k, distance=q - k, heads=tuple(h for h in heads if masks[h][q, k]), terms=())
    for h in heads:
        for text, mask in _terms(pattern, n, h, layer, inputs):
            for q, k in np.argwhere(mask).tolist():
                edge = found.edges[q, k]
                edge["terms"] = tuple(dict.fromkeys((*edge["terms"], text)))
    return found


def block_graph(
    pattern: Pattern, n: int, block: int, head: int | None = None, *, layer: int | None = None, **inputs: Any
) -> Graph:
    """The quotient of one layer's graph at n by blocks of positions: of one head, or of all heads united.

    Node J stands for positions ``first`` = J * block to ``last``. An edge from I to J says that some query of I reads some
    key of J, and has ``pairs``, how many do, ``weight``, their share of all pairs of the two blocks, and ``full``, whether
    all do.

    Args:
        inputs: the runtime inputs by name, as for `Pattern.mask`.

    Raises:
        ImportError: networkx is not installed.
        PatternError: the layers differ and ``layer`` is not given.
        ValueError: there are over 4,096 blocks, too many positions times blocks to count, or over 200,000 edges; patterns
            with draws or runtime inputs are limited to n = 32,768.
    """
    nx = _networkx()
    if block < 1:
        raise ValueError(f"a block has at least 1 position, got {block}")
    if n > MAX_NODES * block:
        raise ValueError(f"n = {n:,} has over {MAX_NODES:,} blocks of {block:,}; take larger ones")
    pairs = _block_pairs(pattern, n, block, head, layer, inputs)
    _check_edges(int((pairs > 0).sum()))
    starts = np.arange(0, n, block)
    sizes = np.minimum(block, n - starts)
    found: Graph = nx.DiGraph(n=n, block=block, pattern=str(pattern))
    ends = (starts + sizes - 1).tolist()
    found.add_nodes_from((i, {"first": first, "last": ends[i]}) for i, first in enumerate(starts.tolist()))
    for i, j in np.argwhere(pairs).tolist():
        count, all_ = int(pairs[i, j]), int(sizes[i] * sizes[j])
        found.add_edge(i, j, pairs=count, weight=count / all_, full=count == all_)
    return found


def _networkx() -> Any:
    try:
        import networkx
    except ImportError:
        raise ImportError("graphs need networkx: pip install 'patternc[graph]'") from None
    return networkx


def _heads(pattern: Pattern, head: int | None, layer: int | None) -> range:
    pattern.meaning(layer=layer)  # raises where a layer has to be chosen
    one = pattern.layer(layer or 0)
    return range(one.heads) if head is None else range(head, head + 1)


def _check_edges(edges: int) -> None:
    if edges > MAX_EDGES:
        raise ValueError(f"there are {edges:,} edges, over {MAX_EDGES:,}; take a smaller n, or block_graph with larger blocks")


def _terms(pattern: Pattern, n: int, head: int, layer: int | None, inputs: dict[str, Any]) -> list[tuple[str, Bools]]:
    """The parts of one head's topmost union, each with the mask of its pairs."""
    found = []
    for text, expression in _arms(joined(select(pattern.expression, {"layers": layer or 0, "heads": head}))):
        one = Pattern(expression)
        found.append((text, one.mask(n, head, **{name: inputs[name] for name in one.inputs})))
    return found


def _arms(node: Expression) -> list[tuple[str, Expression]]:
    """What an expression is the union of, each part with the words that tell it from the others.

    `&` is distributed over one of the unions beside it, if no choice stands beside that union: a choice picks from the whole.
    """
    match node:
        case Chain(operands, ("|", *_)):
            return [arm for operand in operands for arm in _arms(operand)]
        case Chain(operands, ("&", *_)):
            for i, operand in enumerate(operands):
                arms, beside = _arms(operand), operands[:i] + operands[i + 1 :]
                if len(arms) > 1 and not any(map(chooses, beside)):
                    return [(text, replace(node, operands=(*operands[:i], arm, *operands[i + 1 :]))) for text, arm in arms]
    return [(show(node), node)]


def _block_pairs(pattern: Pattern, n: int, block: int, head: int | None, layer: int | None, inputs: dict[str, Any]) -> Counts:
    """How many pairs each block of queries has with each block of keys."""
    heads = _heads(pattern, head, layer)
    meanings = {h: pattern.meaning(head=h, layer=layer) for h in heads}
    if all(meaning.is_static for meaning in meanings.values()):
        try:
            return _counted(reduce(Relation.__or__, (meaning.static for meaning in meanings.values())), n, block)
        except BudgetExceeded:  # the rows have no closed form
            pass
    check_dense(n)
    return _looked_at(meanings, n, block, inputs)


def _looked_at(meanings: dict[int, Meaning], n: int, block: int, inputs: dict[str, Any]) -> Counts:
    starts = np.arange(0, n, block)
    pairs = np.zeros((len(starts), len(starts)), np.int64)
    evaluators = [Evaluator(meaning, n, head, inputs) for head, meaning in meanings.items()]
    k = np.arange(n)[None, :]
    for q in evaluators[0].row_blocks():
        held = reduce(np.logical_or, (evaluator.holds(q[:, None], k) for evaluator in evaluators))
        np.add.at(pairs, q // block, np.add.reduceat(held, starts, axis=1, dtype=np.int64))
    return pairs


def _counted(relation: Relation, n: int, block: int) -> Counts:
    """As `_looked_at`, from the closed form of the rows: how many keys of each row lie before each block."""
    edges = np.arange(0, n + block, block)[None, :]
    if max(1, len(relation.rows)) * n * edges.size > MAX_COUNTED:
        message = f"{n:,} rows of {len(relation.rows)} runs against {edges.size - 1:,} blocks are too much to count"
        raise ValueError(f"{message}; take larger blocks")
    pairs = np.zeros((edges.size - 1, edges.size - 1), np.int64)
    rows = max(1, _PIECE // edges.size)
    for first in range(0, n, rows):
        q = np.arange(first, min(n, first + rows), dtype=np.int64)[:, None]
        before = sum((_before(loop, q, edges, n) for loop in relation.rows), np.zeros((len(q), edges.size), np.int64))
        np.add.at(pairs, q[:, 0] // block, np.diff(before, axis=1))
    return pairs


def _before(loop: Loop, q: Counts, position: Counts, n: int) -> Counts:
    """How many values of a loop lie before a position."""
    start, count = (evaluate(e, {"q": q, "n": n}, np) + 0 * q for e in (loop.start, loop.count))
    found: Counts = np.clip((position - start + loop.step - 1) // loop.step, 0, np.maximum(count, 0))
    return found
