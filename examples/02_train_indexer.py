"""Sparse attention whose keys are chosen by what was learned: an indexer in every layer, trained as in DeepSeek-V3.2.

    python examples/02_train_indexer.py

A small byte-level language model (two layers) on the source and the documentation of Python's standard library, which every
Python has on disk; nothing is downloaded. Three stages:

1. The model is trained with dense causal attention.
2. Warm-up: the model stands still, and each layer's indexer learns to predict its attention over all causal keys.
3. Sparse: the model reads `causal & topk(indexer, n / 8)` and is trained on, while the indexers learn on the keys that they
   select. The dense model is trained on for as many steps, on the same text.

On two CPU cores in two minutes (float32, PyTorch 2.13, the library of Python 3.11.7; 16 of 128 keys):

    divergence of the indexers in the warm-up   1.696 -> 0.182 nats a query
    attention on the 16 keys that they select   90.6%
    held-out loss, dense model, all keys        1.5416 nats a byte
      on 16 keys of these indexers              1.5463
      on 16 keys of untrained indexers          2.6464
    divergence in the sparse stage              0.1683 -> 0.1194
    held-out loss, dense model trained on       1.5080
    held-out loss, sparse model                 1.5092
    sparse / dense                              1.0008
"""

import sysconfig
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import patternc as pc


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths of the stages."""

    n: int = 128
    batch: int = 12
    width: int = 128
    heads: int = 4
    layers: int = 2
    dense_steps: int = 800
    warmup_steps: int = 150
    sparse_steps: int = 200
    rate: float = 2e-3
    seed: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def k(self) -> int:
        """How many keys a query of the sparse model reads."""
        return self.n // 8


@dataclass(frozen=True)
class Outcome:
    """What is printed at the end: losses in nats per byte, divergences in nats per query and layer.

    ``caught`` is the share of dense attention on the keys that the indexers select after the warm-up. ``swapped_loss`` is
    the loss of the dense model of stage 1 as it is, with all keys, with those of the indexers after the warm-up, and with
    those of indexers that learned nothing.
    """

    swapped_loss: tuple[float, float, float]
    dense_loss: float
    sparse_loss: float
    warmup_kl: tuple[float, float]
    sparse_kl: tuple[float, float]
    caught: float


# Text


def corpus() -> tuple[Tensor, Tensor]:
    """Bytes to train on and bytes that are held out: the standard library's top-level modules, its help texts, its licence."""
    home = Path(sysconfig.get_paths()["stdlib"])
    files = [*sorted(home.glob("*.py")), *sorted(home.glob("pydoc_data/topics.py")), *sorted(home.glob("LICENSE.txt"))]
    held_out = set(files[::10])
    parts = [b"\n\n".join(f.read_bytes() for f in files if (f in held_out) == out) for out in (False, True)]
    train, test = (torch.frombuffer(bytearray(part), dtype=torch.uint8).long() for part in parts)
    return train, test


def batches(text: Tensor, s: Settings, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of the text at random places, and for each byte the one that follows."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        first = torch.randint(0, len(text) - s.n - 1, (s.batch, 1), generator=generator)
        piece = text[first + torch.arange(s.n + 1)].to(s.device)
        yield piece[:, :-1], piece[:, 1:]


# Model


def rotated(x: Tensor) -> Tensor:
    """Rotary position embedding of (B, H, N, D)."""
    half = x.shape[3] // 2
    angle = torch.arange(x.shape[2], device=x.device)[:, None] * 1e4 ** (-torch.arange(half, device=x.device) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def split(x: Tensor, heads: int) -> Tensor:
    """(B, N, H D) as (B, H, N, D)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class Indexer(nn.Module):
    """Scores sum_h w_h relu(q_h . k) from a layer's input, which gets no gradient."""

    def __init__(self, width: int, heads: int = 4, dim: int = 32):
        super().__init__()
        self.heads, self.factor = heads, (heads * dim) ** -0.5
        self.q, self.k, self.w = nn.Linear(width, heads * dim), nn.Linear(width, dim), nn.Linear(width, heads)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q_idx, k_idx and w of (B, N, width)."""
        x = x.detach()
        q, k = rotated(split(self.q(x), self.heads)), rotated(split(self.k(x), 1))
        return q, k, self.w(x).transpose(1, 2) * self.factor


class Layer(nn.Module):
    """Attention and a feed-forward network, each on the normalised input and added to it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Model(nn.Module):
    """A byte-level language model whose attention is a pattern of this library."""

    def __init__(self, s: Settings):
        super().__init__()
        self.embed = nn.Embedding(256, s.width)
        self.layers = nn.ModuleList(Layer(s.width, s.heads) for _ in range(s.layers))
        self.norm, self.head = nn.LayerNorm(s.width), nn.Linear(s.width, 256)

    def forward(self, ids: Tensor, attend: "Dense | Sparse") -> Tensor:
        """Logits (B, N, 256)."""
        x = self.embed(ids)
        for i, layer in enumerate(self.layers):
            y = layer.before(x)
            q, k, v = (split(t, layer.heads) for t in layer.qkv(y).chunk(3, -1))
            attended = attend(i, y, rotated(q), rotated(k), v)
            x = x + layer.out(attended.transpose(1, 2).flatten(2))
            x = x + layer.feed(layer.between(x))
        return self.head(self.norm(x))


class Dense:
    """Attention to all causal keys; with indexers, also what they lose against it (and what they would catch)."""

    attention = pc.compile("causal")

    def __init__(self, indexers: nn.ModuleList | None = None, k: int | None = None):
        self.indexers, self.k = indexers, k
        self.kl: list[Tensor] = []
        self.caught: list[Tensor] = []

    def __call__(self, i: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = self.attention(q, k, v, return_lse=True)
        if self.indexers is not None:
            index = self.indexers[i](x)
            self.kl.append(pc.selection.indexer_kl(*index, q, k, lse=lse).mean())
            if self.k:
                scores = partial(pc.selection.indexer_scores, *index)
                indices = pc.selection.selected(pc.compile(f"causal & topk(indexer, {self.k})"), q, k, v, indexer=scores)
                mass = pc.selection.attention_mass(q, k, indices=indices, lse=lse)
                self.caught.append(mass.sum(-1).mean() / q.shape[1])
        return out


class Sparse:
    """Attention to the keys that the indexers select, and what the indexers lose on these keys."""

    def __init__(self, indexers: nn.ModuleList, k: int):
        self.indexers = indexers
        self.attention = pc.compile(f"causal & topk(indexer, {k})")
        self.kl: list[Tensor] = []

    def __call__(self, i: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        index = self.indexers[i](x)
        scores = partial(pc.selection.indexer_scores, *index)  # asked for a few rows at a time
        out, lse = self.attention(q, k, v, indexer=scores, return_lse=True)
        if torch.is_grad_enabled():
            indices = pc.selection.selected(self.attention, q, k, v, indexer=scores)
            self.kl.append(pc.selection.indexer_kl(*index, q, k, indices=indices, lse=lse).mean())
        return out


# Stages


def language_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Nats per byte."""
    return cross_entropy(logits.flatten(0, 1), wanted.flatten())


def optimizer_of(
    module: nn.Module, rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam whose rate falls to a tenth along a cosine."""
    adam = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(1, steps), rate / 10)


def train_dense(model: Model, text: Tensor, s: Settings, steps: int, rate: float, seed: int, what: str) -> None:
    """Stage 1, and what the dense model does while the other is in stage 3."""
    adam, schedule = optimizer_of(model, rate, steps)
    for _, (ids, wanted) in zip(track(range(steps), what), batches(text, s, seed), strict=False):
        adam.zero_grad()
        language_loss(model(ids, Dense()), wanted).backward()
        adam.step()
        schedule.step()


def warm_up(model: Model, indexers: nn.ModuleList, text: Tensor, s: Settings) -> tuple[float, float]:
    """Stage 2; the divergence at the beginning and at the end."""
    adam, schedule = optimizer_of(indexers, s.rate, s.warmup_steps)
    seen = []
    model.requires_grad_(False)
    for _, (ids, _) in zip(track(range(s.warmup_steps), "2 warm-up"), batches(text, s, s.seed + 1), strict=False):
        attend = Dense(indexers)
        model(ids, attend)
        loss = torch.stack(attend.kl).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        seen.append(loss.item())
    model.requires_grad_(True)
    return ends(seen)


def train_sparse(model: Model, indexers: nn.ModuleList, text: Tensor, s: Settings) -> tuple[float, float]:
    """Stage 3; the divergence on the selected keys at the beginning and at the end."""
    both = nn.ModuleList([model, indexers])
    adam, schedule = optimizer_of(both, s.rate / 2, s.sparse_steps)
    seen = []
    for _, (ids, wanted) in zip(track(range(s.sparse_steps), "3 sparse"), batches(text, s, s.seed + 2), strict=False):
        attend = Sparse(indexers, s.k)
        logits = model(ids, attend)
        divergence = torch.stack(attend.kl).mean()
        adam.zero_grad()
        (language_loss(logits, wanted) + divergence).backward()  # no parameter is in both
        adam.step()
        schedule.step()
        seen.append(divergence.item())
    return ends(seen)


def ends(seen: list[float]) -> tuple[float, float]:
    """The mean over the first few steps and over the last few."""
    few = max(1, len(seen) // 20)
    return sum(seen[:few]) / few, sum(seen[-few:]) / few


@torch.no_grad()
def evaluate(model: Model, attend: "Dense | Sparse", text: Tensor, s: Settings) -> float:
    """The loss on held-out text, the same pieces for every model."""
    found = [
        language_loss(model(ids, attend), wanted).item()
        for _, (ids, wanted) in zip(range(24), batches(text, s, 99), strict=False)
    ]
    return sum(found) / len(found)


def run(s: Settings) -> Outcome:
    """All stages."""
    torch.manual_seed(s.seed)
    train, test = corpus()
    model = Model(s).to(s.device)
    indexers, untrained = (nn.ModuleList(Indexer(s.width) for _ in range(s.layers)).to(s.device) for _ in range(2))
    train_dense(model, train, s, s.dense_steps, s.rate, s.seed, "1 dense")
    warmup_kl = warm_up(model, indexers, train, s)
    looking = Dense(indexers, s.k)
    swapped = evaluate(model, looking, test, s), *(evaluate(model, Sparse(i, s.k), test, s) for i in (indexers, untrained))
    dense = deepcopy(model)
    train_dense(dense, train, s, s.sparse_steps, s.rate / 2, s.seed + 2, "3 dense")
    sparse_kl = train_sparse(model, indexers, train, s)
    return Outcome(
        swapped_loss=swapped,
        dense_loss=evaluate(dense, Dense(), test, s),
        sparse_loss=evaluate(model, Sparse(indexers, s.k), test, s),
        warmup_kl=warmup_kl,
        sparse_kl=sparse_kl,
        caught=torch.stack(looking.caught).mean().item(),
    )


def main(s: Settings = Settings()) -> None:
    """Print what came out."""
    found = run(s)
    all_keys, learned, untrained = found.swapped_loss
    rows = {
        "divergence of the indexers in the warm-up": f"{found.warmup_kl[0]:.3f} -> {found.warmup_kl[1]:.3f} nats a query",
        f"attention on the {s.k} keys that they select": f"{found.caught:.1%}",
        "held-out loss, dense model, all keys": f"{all_keys:.4f} nats a byte",
        f"  on {s.k} keys of these indexers": f"{learned:.4f}",
        f"  on {s.k} keys of untrained indexers": f"{untrained:.4f}",
        "divergence in the sparse stage": f"{found.sparse_kl[0]:.4f} -> {found.sparse_kl[1]:.4f}",
        "held-out loss, dense model trained on": f"{found.dense_loss:.4f}",
        "held-out loss, sparse model": f"{found.sparse_loss:.4f}",
        "sparse / dense": f"{found.sparse_loss / found.dense_loss:.4f}",
    }
    for label, value in rows.items():
        print(f"{label:<44}{value}")


if __name__ == "__main__":
    main()
