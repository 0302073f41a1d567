"""Longformer's and BigBird's own attention modules, against dense attention under patternc's mask.

The modules never build their masks: what they attend to shows only in what they put out.
"""

import math
from typing import Any

import numpy as np
import pytest

import patternc as pc

torch = pytest.importorskip("torch")
longformer = pytest.importorskip("transformers.models.longformer.modeling_longformer")
big_bird = pytest.importorskip("transformers.models.big_bird.modeling_big_bird")

HIDDEN, HEADS = 32, 4


def dense_attention(module: Any, x: Any, masks: list[np.ndarray]) -> Any:
    """The module's projections, then softmax attention under one mask a head."""

    def split(y: Any) -> Any:
        return y.view(1, -1, HEADS, HIDDEN // HEADS).transpose(1, 2)

    q, k, v = split(module.query(x)), split(module.key(x)), split(module.value(x))
    scores = q @ k.transpose(-1, -2) / math.sqrt(HIDDEN // HEADS)
    allowed = torch.from_numpy(np.stack(masks))[None]
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize(("window", "n"), [(4, 16), (8, 32), (16, 64)])
@pytest.mark.parametrize("positions", [[], [0], [0, 5, 11]], ids=str)
def test_longformer(window: int, n: int, positions: list[int]) -> None:
    torch.manual_seed(window + len(positions))
    config = longformer.LongformerConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, attention_window=[window], attention_probs_dropout_prob=0.0
    )
    module = longformer.LongformerSelfAttention(config, layer_id=0).double()
    # Global rows have projections of their own; made equal, only the mask is left to differ.
    for name in ("query", "key", "value"):
        getattr(module, f"{name}_global").load_state_dict(getattr(module, name).state_dict())
    x = torch.randn(1, n, HIDDEN, dtype=torch.float64)
    is_global = torch.zeros(1, n, dtype=torch.bool)
    is_global[0, positions] = True
    with torch.no_grad():
        (got,) = module(
            x,
            attention_mask=torch.where(is_global, 10_000.0, 0.0).double(),
            is_index_masked=torch.zeros(1, n, dtype=torch.bool),
            is_index_global_attn=is_global,
            is_global_attn=bool(positions),
        )
        pattern = pc.parse(f"local({window}) | global({positions})" if positions else f"local({window})")
        expected = dense_attention(module, x, [pattern.mask(n)] * HEADS)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)  # its softmax is in single precision


@pytest.mark.parametrize(("block", "draws"), [(4, 3), (8, 1)])
def test_big_bird(block: int, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = 16
    n = blocks * block
    torch.manual_seed(block)
    config = big_bird.BigBirdConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, block_size=block, num_random_blocks=draws, max_position_embeddings=n
    )
    # Only in training does it draw its random blocks; in evaluation it counts block 0 several times.
    module = big_bird.BigBirdBlockSparseAttention(config, seed=7).double().train()
    drawn = []
    draw = module._bigbird_block_rand_mask_with_head

    def remember(*args: Any, **kwargs: Any) -> Any:
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(module, "_bigbird_block_rand_mask_with_head", remember)
    x = torch.randn(1, n, HIDDEN, dtype=torch.float64)
    blocked, band, rows, columns = big_bird.BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, n).double(), block)
    with torch.no_grad():
        got, _ = module(x, band_mask=band, from_mask=rows, to_mask=columns, from_blocked_mask=blocked, to_blocked_mask=blocked)
        ends = f"[0..{block - 1}, -{block}..-1]"
        pattern = pc.parse(f"blocks({block}, 1, 1) | global({ends}) | layout(drawn, {block})")
        masks = []
        for head in range(HEADS):
            table = np.zeros((blocks, blocks), bool)
            table[np.arange(1, blocks - 1)[:, None], np.asarray(drawn[0][head])] = True
            masks.append(pattern.mask(n, drawn=table))
        expected = dense_attention(module, x, masks)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
