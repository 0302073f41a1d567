"""The masks that attention-gym ships for FlexAttention, position by position."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import patternc as pc

torch = pytest.importorskip("torch")
gym = pytest.importorskip("attn_gym.masks")

N = 72
EDGES = [0, 10, 11, 40, N]


def is_global(*positions: int) -> Any:
    flags = torch.zeros(N, dtype=torch.bool)
    flags[list(positions)] = True
    return flags


def offsets() -> Any:
    return torch.tensor(EDGES, dtype=torch.int32)


# Its windows reach back W keys, so they hold W + 1.
CASES: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "causal": ("causal", lambda: gym.causal_mask, {}),
    "sliding window": ("causal & window(10)", lambda: gym.generate_sliding_window(9), {}),
    "sliding window, as left and right": ("window(left=9, right=0)", lambda: gym.generate_sliding_window(9), {}),
    "prefix": ("causal | sinks(20)", lambda: gym.generate_prefix_lm_mask(20), {}),
    "dilated": ("window(left=3, right=3, dilation=4)", lambda: gym.generate_dilated_sliding_window(15, 4), {}),
    "dilated, as a window and a stride": ("window(16) & stride(4)", lambda: gym.generate_dilated_sliding_window(15, 4), {}),
    "global": ("local(10) | global([0, 33, -1])", lambda: gym.generate_global_sliding_window(5, is_global(0, 33, N - 1)), {}),
    "documents": (
        "causal & document(ids)",
        lambda: gym.generate_doc_mask_mod(gym.causal_mask, offsets()),
        {"ids": np.array(EDGES)},
    ),
    "packed documents": (
        "causal & document(ids)",
        lambda: gym.generate_packed_causal_doc_mask_mod(offsets()),
        {"ids": np.array(EDGES)},
    ),
    "block diffusion": (
        # Block diffusion: the noised half, then the clean half, 36 tokens each, in blocks of 6.
        """
        let noised = where(q < 36 and k < 36)
        let clean = where(36 <= k)
        (noised & chunk(6)) | (clean & where(q < 36 and q // 6 > (k - 36) // 6)) | (clean & where(36 <= q and q // 6 >= k // 6))
        """,
        lambda: gym.generate_block_diffusion_mask(36, 6),
        {},
    ),
    "Sparse VideoGen, spatial": (
        # Sparse VideoGen, spatial head: a prompt of 8, frames of 16, two frames wide, the first frame a sink.
        "columns([0..23]) | rows([0..7]) | window(32)",
        lambda: gym.generate_spatial_head_mask_mod(8, 4, 16, 2, attn_sink=True, round_width=8),
        {},
    ),
    "Sparse VideoGen, temporal": (
        # Its temporal head: the same place in every frame, 16 * 2 // 4 = 8 wide.
        "global([0..7]) | where(-8 < (q - 8) % 16 - (k - 8) % 16 < 8)",
        lambda: gym.generate_temporal_head_mask_mod(8, 4, 16, 2),
        {},
    ),
}


@pytest.mark.parametrize(("expression", "mask", "inputs"), CASES.values(), ids=CASES.keys())
def test_mask_equals(expression: str, mask: Callable[[], Any], inputs: dict[str, Any]) -> None:
    q, k = torch.arange(N)[:, None], torch.arange(N)[None, :]
    expected = torch.broadcast_to(mask()(torch.tensor(0), torch.tensor(0), q, k), (N, N)).numpy()
    assert np.array_equal(pc.parse(expression).mask(N, **inputs), expected)
