"""Forward time of the thirteen patterns against FlexAttention, side by side in one run on one GPU.

    python tests/bench/forward.py --out tests/bench/results/forward.json

Times are medians of CUDA-event timings (`triton.testing.do_bench`), in milliseconds; FlexAttention's are without the
time to build its block masks. Peers see the same mask: its closed form, or for BigBird its table of blocks.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import numpy as np
import torch
import triton
from patterns import PATTERNS, floor_ms, pairs_of
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from triton.testing import do_bench

import patternc as pc
from patternc.scalar import evaluate


def median(function):
    return do_bench(function, warmup=25, rep=100, return_mode="median")


def mask_mod(expression, n, heads):
    """The pattern as FlexAttention's mask_mod, by its closed form or, with random blocks, its table of blocks of 64."""
    meaning = pc.parse(expression).meaning()
    if meaning.is_static:
        predicate = meaning.static.predicate
        return lambda b, h, q, k: evaluate(predicate, {"q": q, "k": k, "n": n}, torch)
    tables = np.stack([block_table(meaning, n, head) for head in range(heads)])
    table = torch.from_numpy(tables).cuda()
    return lambda b, h, q, k: table[h, q // 64, k // 64]


def block_table(meaning, n, head, block=64):
    """Which blocks of 64 hold a pair; for patterns that are made of such blocks, that is the pattern."""
    from patternc.dense import Evaluator

    first = np.arange(0, n, block)
    return Evaluator(meaning, n, head, {}).holds(first[:, None], first[None, :])


def flex_forward(expression, q, k, v, backend):
    n, heads = q.shape[2], q.shape[1]
    mod = mask_mod(expression, n, heads)
    per_head = None if pc.parse(expression).meaning().is_static else heads
    mask = torch.compile(create_block_mask)(mod, None, per_head, n, n, device="cuda")
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    call = lambda: compiled(q, k, v, block_mask=mask, kernel_options={"BACKEND": backend}, enable_gqa=k.shape[1] != heads)  # noqa: E731
    return call() if backend == "check" else call


def measure(expression, q, k, v, peers):
    """Times of patternc and the peers, and the largest difference between their outputs."""
    attention = pc.compile(expression, backend="triton")
    row = {"patternc_ms": median(lambda: attention(q, k, v))}
    out = attention(q, k, v).float()
    for peer in peers:
        try:
            call = flex_forward(expression, q, k, v, peer)
            row[f"flex_{peer.lower()}_difference"] = (call().float() - out).abs().max().item()
            row[f"flex_{peer.lower()}_ms"] = median(call)
        except Exception as error:  # a peer that fails is a result too
            row[f"flex_{peer.lower()}_error"] = repr(error)[:300]
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=32768)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=16)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--peers", default="TRITON")
    parser.add_argument("--patterns", default=",".join(PATTERNS).replace(", ", "; "))
    parser.add_argument("--commit", default="", help="what was measured")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch._dynamo.config.recompile_limit = 1000
    torch.manual_seed(0)
    tensor = lambda h: torch.randn(1, h, args.n, args.dim, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    q, k, v = tensor(args.heads), tensor(args.kv_heads), tensor(args.kv_heads)
    rows = []
    for name, expression in PATTERNS.items():
        if name.replace(", ", "; ") not in args.patterns:
            continue
        pairs = pairs_of(expression, args.n)
        row = {"pattern": expression, "pairs": pairs, **measure(expression, q, k, v, [p for p in args.peers.split(",") if p])}
        row["floor_ms"] = floor_ms(pairs, 1, args.heads, args.kv_heads, args.n, args.dim)
        row["tflops"] = 4 * pairs * args.dim * args.heads / row["patternc_ms"] / 1e9
        rows.append(row)
        print(json.dumps(row), flush=True)

    report = {
        "what": "forward, bf16, batch 1",
        "n": args.n,
        "heads": args.heads,
        "kv_heads": args.kv_heads,
        "dim": args.dim,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": sys.version.split()[0],
        "commit": args.commit,
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    if args.out:
        Path(args.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
