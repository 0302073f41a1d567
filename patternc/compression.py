"""Compressed keys and values: one for each block of positions, and which of them a query may read.

The compression of Native Sparse Attention (NSA, Yuan et al. 2025, arXiv:2502.11089): block i summarises the positions
i * stride to i * stride + block - 1, and a query reads the blocks that have ended. Blocks overlap where stride < block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Pool = Callable[[Tensor], Tensor]


def compressed_length(n: int, block: int, stride: int) -> int:
    """The number of blocks that are complete in n positions: floor((n - block) / stride) + 1, and 0 for n < block.

    Raises:
        ValueError: a negative n, or a block or stride below 1.
    """
    _check_sizes(n, block, stride)
    return max(0, (n - block) // stride + 1)


def compress(k: Tensor, block: int, stride: int, pool: Pool | Literal["mean", "max"] = "mean") -> Tensor:
    """One vector for each complete block: c_i = pool(k[i * stride : i * stride + block]).

    Args:
        k: keys or values (B, H, N, D) of any floating dtype.
        block, stride: positions in a block, and from one block's start to the next one's; NSA takes 32 and 16.
        pool: "mean", "max", or a function from blocks (B, H, M, block, D), a view that is not to be written to, to
            (B, H, M, D'): NSA's is a learned network that adds an embedding of the place within the block.

    Returns:
        (B, H, M, D'), M = `compressed_length`: the last positions, which fill no block yet, are in none. Differentiable in k
        and in what pool learns.

    Raises:
        ValueError: a shape, block, stride or pool that does not fit, or a pool that returns another shape.
        TypeError: k is no floating-point tensor.
    """
    _check_keys(k)
    m = compressed_length(k.shape[2], block, stride)
    none = k[:, :, :0, None].expand(-1, -1, -1, block, -1)
    blocks = k.unfold(2, block, stride).movedim(-1, -2) if m else none
    if pool == "mean":
        return blocks.mean(-2)
    if pool == "max":
        return blocks.amax(-2)
    if not callable(pool):
        raise ValueError(f"pool must be 'mean', 'max' or a function of the blocks, got {pool!r}")
    found = pool(blocks)
    if found.dim() != 4 or found.shape[:3] != (*k.shape[:2], m):
        raise ValueError(f"pool must return {(*k.shape[:2], m)} and a last axis of any size, got {tuple(found.shape)}")
    return found


def compressed_ends(n: int, block: int, stride: int, device: torch.device | str | None = None) -> Tensor:
    """The last position of each complete block: int64 (M,), end_i = i * stride + block - 1.

    Raises:
        ValueError: a negative n, or a block or stride below 1.
    """
    return torch.arange(compressed_length(n, block, stride), device=device) * stride + (block - 1)


def compressed_mask(
    n: int, block: int, stride: int, *, n_q: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Which compressed blocks each query may read: bool (Nq, M), true where the block has ended before the query or at it.

    The query at position t reads the blocks 0 to floor((t + 1 - block) / stride), none before position block - 1; NSA
    writes the same with positions from 1. Queries are the last ``n_q`` positions (default: all of n).

    Raises:
        ValueError: a negative n, a block or stride below 1, or n_q not within 0 to n.
    """
    n_q = n if n_q is None else n_q
    if not 0 <= n_q <= n:
        raise ValueError(f"n_q must be within 0 to n = {n}, queries being the last positions, got {n_q}")
    return compressed_ends(n, block, stride, device) <= torch.arange(n - n_q, n, device=device)[:, None]


def at_ends(compressed: Tensor, n: int, block: int, stride: int) -> Tensor:
    """Compressed keys or values laid out so that a pattern can read them: each at its block's last position, else 0.

    Args:
        compressed: (B, H, M, D) for n positions, as `compress` returns it.

    Returns:
        (B, H, n, D), to be read with `compressed_pattern`, which touches the M positions only.

    Raises:
        ValueError: M is not `compressed_length`, or a block or stride below 1.
        TypeError: it is no floating-point tensor.
    """
    _check_keys(compressed)
    ends = compressed_ends(n, block, stride, compressed.device)
    if compressed.shape[2] != len(ends):
        raise ValueError(f"{n} positions hold {len(ends)} blocks of {block} at stride {stride}, got {compressed.shape[2]}")
    spread = compressed.new_zeros(*compressed.shape[:2], n, compressed.shape[3])
    return spread.index_copy(2, ends, compressed)


def compressed_pattern(block: int, stride: int) -> str:
    """The pattern that reads what `at_ends` laid out: `compressed_mask` in the language.

    Its kernels pack the keys: they touch one in ``stride`` positions.

    >>> compressed_pattern(32, 16)
    'causal & where(k >= 31 and k % 16 == 15)'

    Raises:
        ValueError: a block or stride below 1.
    """
    _check_sizes(0, block, stride)
    last = block - 1
    return f"causal & where(k >= {last} and k % {stride} == {last % stride})"


def _check_sizes(n: int, block: int, stride: int) -> None:
    for name, value, least in (("n", n, 0), ("block", block, 1), ("stride", stride, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_keys(k: Tensor) -> None:
    if not isinstance(k, Tensor):
        raise TypeError(f"keys or values must be a tensor, got {type(k).__name__}")
    if not k.dtype.is_floating_point:
        raise TypeError(f"keys or values must be floating point, got {k.dtype}")
    if k.dim() != 4:
        raise ValueError(f"keys or values must have shape (batch, heads, length, head_dim), got {tuple(k.shape)}")
