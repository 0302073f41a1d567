"""The example that trains an indexer, in a tiny setting."""

import runpy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "02_train_indexer.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def tiny(example: dict[str, Any], **changes: Any) -> Any:
    sizes = {"n": 64, "batch": 4, "width": 32, "heads": 2, "dense_steps": 40, "warmup_steps": 30, "sparse_steps": 10}
    return example["Settings"](**{**sizes, "device": "cpu", **changes})


def test_the_stages(example: dict[str, Any]) -> None:
    found = example["run"](tiny(example))
    assert found.warmup_kl[1] < 0.7 * found.warmup_kl[0]
    assert 8 / 64 < found.caught < 1
    all_keys, learned, untrained = found.swapped_loss
    assert all_keys - 0.01 < learned < untrained + 0.01
    assert found.dense_loss < 4  # nats a byte; log 256 is 5.5
    assert found.sparse_loss < 1.05 * found.dense_loss


def test_two_runs_are_the_same(example: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    s = tiny(example, dense_steps=3, warmup_steps=2, sparse_steps=2)
    printed = []
    for _ in range(2):
        example["main"](s)
        printed.append(capsys.readouterr().out.split("divergence of the indexers", 1)[1])
    assert printed[0] == printed[1]
    assert "sparse / dense" in printed[0]


def test_all_keys_selected_is_dense(example: dict[str, Any]) -> None:
    """With k = n the sparse model is the dense one."""
    s = tiny(example)
    torch.manual_seed(0)
    model = example["Model"](s)
    indexers = torch.nn.ModuleList(example["Indexer"](s.width) for _ in range(s.layers))
    ids = torch.randint(0, 256, (2, s.n))
    with torch.no_grad():
        sparse, dense = (model(ids, attend) for attend in (example["Sparse"](indexers, s.n), example["Dense"]()))
    torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-5)
