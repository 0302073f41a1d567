"""The torch backend on a CPU against torch's dense attention under the same mask.

    python tests/bench/cpu.py --n 16384 --out tests/bench/results/cpu.json

Best of several wall-clock times, alternating, in one process on all cores that torch uses.
"""

import argparse
import datetime
import json
import platform
import time
from pathlib import Path

import torch
from patterns import pairs_of

import patternc as pc

PATTERNS = ["window(512)", "causal & window(512)", "local(512) | global([0])", "causal & chunk(1024)", "causal"]


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(expression, n, heads, dim, repeats):
    q, k, v = (torch.randn(1, heads, n, dim) for _ in range(3))
    mask = torch.from_numpy(pc.parse(expression).mask(n))
    sparse = pc.compile(expression, backend="torch")
    calls = {
        "patternc_s": lambda: sparse(q, k, v),
        "sdpa_dense_mask_s": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask),
    }
    difference = (calls["patternc_s"]() - calls["sdpa_dense_mask_s"]()).abs().max().item()
    times = {name: min(seconds(call) for _ in range(repeats)) for name, call in calls.items()}
    ratio = times["sdpa_dense_mask_s"] / times["patternc_s"]
    density = pairs_of(expression, n) / n**2
    return {"pattern": expression, "density": density, **times, "ratio": ratio, "difference": difference}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    rows = []
    for expression in PATTERNS:
        rows.append(measure(expression, args.n, args.heads, args.dim, args.repeats))
        print(json.dumps(rows[-1]), flush=True)
    report = {
        "what": "forward on a CPU, float32, batch 1",
        "n": args.n,
        "heads": args.heads,
        "dim": args.dim,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    if args.out:
        Path(args.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
