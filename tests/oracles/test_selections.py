"""Selections against the implementations that others published: the lightning indexer three times, and NSA's blocks."""

from typing import Any

import pytest

import patternc as pc

torch = pytest.importorskip("torch")

B, H, HKV, N, D = 2, 8, 2, 96, 16
HEADS, DIM = 16, 12  # with few heads, scores of exactly 0 are frequent, and others break ties as it comes
DSA = f"causal & topk(indexer(heads={HEADS}, dim={DIM}), 20)"
EDGES = [0, 10, 11, 60, N]


def randn(*shape: int, seed: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def indexer_inputs(batch: int = B) -> dict[str, Any]:
    shapes = {"q": (batch, HEADS, N, DIM), "k": (batch, 1, N, DIM), "w": (batch, HEADS, N)}
    return {f"indexer_{name}": randn(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def positions_first(inputs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The inputs as others take them: (batch, n, heads, dim), (batch, n, dim) and (batch, n, heads)."""
    q, k, w = inputs.values()
    return q.transpose(1, 2), k[:, 0], w.transpose(1, 2)


def read(text: str, q: Any = None, k: Any = None, **inputs: Any) -> Any:
    """Which keys are read, (batch, heads, n, n), seen in the output of one-hot values."""
    batch = next(iter(inputs.values())).shape[0] if q is None else len(q)
    q = torch.zeros(batch, 1, N, 8) if q is None else q
    k = torch.zeros(batch, 1, N, 8) if k is None else k
    v = torch.eye(N).expand(*k.shape[:2], N, N)
    return pc.compile(text, backend="torch")(q, k, v, **inputs) > 0


def listed(indices: Any, n: int) -> Any:
    """The mask of lists of keys, -1 for none."""
    found = torch.zeros(*indices.shape[:-1], n + 1, dtype=torch.bool)
    return found.scatter(-1, torch.where(indices < 0, n, indices).long(), True)[..., :n]


def test_attention_gym_lightning_indexer() -> None:
    sparse = pytest.importorskip("attn_gym.sparse.indexer.api")
    inputs = indexer_inputs()
    found = sparse.lightning_indexer(*positions_first(inputs), 20, causal=True, impl="reference")
    assert torch.equal(read(DSA, **inputs)[:, 0], listed(found, N))


def test_attention_gym_lightning_indexer_of_packed_documents() -> None:
    sparse = pytest.importorskip("attn_gym.sparse.indexer.api")
    inputs, edges = indexer_inputs(1), torch.tensor(EDGES, dtype=torch.int32)
    packed = {"cu_seqlens": edges, "cu_seqlens_k": edges}
    found = sparse.lightning_indexer(*positions_first(inputs), 20, causal=True, impl="reference", **packed)
    first = edges[torch.searchsorted(edges, torch.arange(N), right=True) - 1]
    found = torch.where(found < 0, -1, found + first[:, None])  # it counts from the start of a document
    mine = read(f"{DSA} & document(ids)", **inputs, ids=edges)
    assert torch.equal(mine[:, 0], listed(found, N))


@pytest.mark.filterwarnings("ignore")
def test_flash_linear_attention_dsa_indexer() -> None:
    naive = pytest.importorskip("fla.ops.dsa.naive")
    inputs = indexer_inputs()
    found = naive.naive_dsa_indexer(*positions_first(inputs), topk=20, activation="relu")
    assert torch.equal(read(DSA, **inputs)[:, 0], listed(found, N))


def test_transformers_deepseek_v32_indexer() -> None:
    model = pytest.importorskip("transformers.models.deepseek_v32.modeling_deepseek_v32")
    sizes = {"hidden_size": 32, "q_lora_rank": 24, "qk_rope_head_dim": 4, "index_topk": 20}
    config = model.DeepseekV32Config(**sizes, index_n_heads=HEADS, index_head_dim=DIM)
    torch.manual_seed(0)
    indexer = model.DeepseekV32Indexer(config, 0).float()
    hidden, low = randn(B, N, 32, seed=1), randn(B, N, 24, seed=2)
    still = torch.ones(B, N, 4), torch.zeros(B, N, 4)  # no rotation: it is not part of the selection
    causal = torch.ones(N, N).tril().bool().expand(B, N, N)
    found = indexer(hidden, low, still, causal, torch.arange(N)[None])
    with torch.no_grad():
        inputs = {
            "indexer_q": indexer.wq_b(low).view(B, N, HEADS, DIM).transpose(1, 2),
            "indexer_k": indexer.k_norm(indexer.wk(hidden))[:, None],
            "indexer_w": indexer.weights_proj(hidden).transpose(1, 2),
        }
    assert torch.equal(read(DSA, **inputs)[:, 0], listed(found, N) & causal)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("block", [8, 16])
def test_flash_linear_attention_nsa_blocks(block: int, count: int) -> None:
    """It compresses the blocks that it selects (l = d = l'), and forces the first block, the own and the one before."""
    naive = pytest.importorskip("fla.ops.nsa.naive")
    q, k, scale = randn(B, H, N, D, seed=1), randn(B, HKV, N, D, seed=2), D**-0.5
    pooled = k.unflatten(2, (-1, block)).mean(3)
    found = naive.naive_nsa_topk(q.transpose(1, 2), pooled.transpose(1, 2), count, block, scale)
    chosen = listed(found, N // block).transpose(1, 2).repeat_interleave(block, 3).repeat_interleave(H // HKV, 1)
    force = f"sinks({block}) | blocks({block}, 1, 0)"
    text = f"causal & topk(compressed({block}, {block}), {count}, block={block}, share=group, force={force})"
    assert torch.equal(read(text, q, k), chosen & torch.ones(N, N).tril().bool())


@pytest.mark.filterwarnings("ignore")
def test_flash_linear_attention_nsa_attention() -> None:
    """The selected branch's output, given the blocks that its own selection picks."""
    naive = pytest.importorskip("fla.ops.nsa.naive")
    q, k, v, scale = randn(B, H, N, D, seed=1), randn(B, HKV, N, D, seed=2), randn(B, HKV, N, D, seed=3), D**-0.5
    pooled = k.unflatten(2, (-1, 16)).mean(3)
    found = naive.naive_nsa_topk(q.transpose(1, 2), pooled.transpose(1, 2), 4, 16, scale)
    out = naive.naive_nsa_selection(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), found, 16, scale)
    text = "causal & topk(compressed(16, 16), 4, block=16, share=group, force=sinks(16) | blocks(16, 1, 0))"
    mine = pc.compile(text, backend="torch")(q, k, v)
    torch.testing.assert_close(mine, out.transpose(1, 2), atol=1e-5, rtol=1e-5)
