"""The masks of Hugging Face's `masking_utils`, position by position."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import patternc as pc

torch = pytest.importorskip("torch")
masking = pytest.importorskip("transformers.masking_utils")

UNPADDED = torch.zeros(1, dtype=torch.long)


def dense(function: Callable[..., Any], n: int) -> np.ndarray:
    """A mask function over the whole square, for batch 0 and head 0."""
    q, k = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return torch.broadcast_to(function(0, 0, q, k), (n, n)).numpy()


# Hugging Face's causal window of W holds W keys, the query's own included; its bidirectional one holds W to either side.
CASES = [
    ("causal", masking.causal_mask_function),
    ("full", masking.bidirectional_mask_function),
    *((f"causal & window({w})", masking.sliding_window_causal_mask_function(w)) for w in (1, 2, 7, 200)),
    *((f"window({w + 1})", masking.sliding_window_bidirectional_mask_function(w)) for w in (0, 1, 7)),
    *((f"local({2 * w})", masking.sliding_window_bidirectional_mask_function(w)) for w in (1, 7)),
    *((f"causal & chunk({c})", masking.chunked_causal_mask_function(c, UNPADDED)) for c in (1, 5, 64)),
]


@pytest.mark.parametrize(("expression", "function"), CASES, ids=[expression for expression, _ in CASES])
@pytest.mark.parametrize("n", [1, 2, 63, 64, 100])
def test_mask_equals(expression: str, function: Callable[..., Any], n: int) -> None:
    assert np.array_equal(pc.parse(expression).mask(n), dense(function, n))


def test_packed_sequences_equal_document() -> None:
    ids = np.repeat([0, 1, 2, 5], [3, 1, 20, 8])
    packed = masking.and_masks(masking.packed_sequence_mask_function(torch.from_numpy(ids)[None]), masking.causal_mask_function)
    assert np.array_equal(pc.parse("causal & document(ids)").mask(len(ids), ids=ids), dense(packed, len(ids)))


@pytest.mark.parametrize(
    ("model", "sizes", "name"),
    [
        ("mistral", {}, "mistral"),
        ("gemma2", {"sliding_window": 4096}, "gemma2"),
        ("gpt_oss", {"sliding_window": 128}, "gpt_oss"),
    ],
)
def test_presets_equal_the_masks_that_the_models_build(model: str, sizes: dict[str, int], name: str) -> None:
    """The preset of each layer, against the mask that the model's own config asks for, around the window's edge."""
    config = pytest.importorskip("transformers").AutoConfig.for_model(model, **sizes)
    window, n = config.sliding_window, config.sliding_window + 3
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    pattern = pc.preset(name)
    assert window in (128, 4096)
    q, k = torch.tensor([0, 1, window - 1, window, n - 1]), torch.arange(n)
    for index, kind in enumerate(kinds[:4]):
        sliding = kind == "sliding_attention"
        function = masking.sliding_window_causal_mask_function(window) if sliding else masking.causal_mask_function
        expected = function(0, 0, q[:, None], k[None, :]).numpy()
        got = np.zeros_like(expected)
        for row, position in enumerate(q.tolist()):
            for first, last, step in pattern.layer(index).row(position, n):
                got[row, first : last + 1 : step] = True
        assert np.array_equal(got, expected), f"layer {index}, {kind}"
