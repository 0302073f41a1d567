"""The torch backend on a CPU against torch's dense attention under the same mask and compiled FlexAttention.

    python tests/bench/cpu.py --out tests/bench/results/cpu_2cores.json

Medians of wall-clock times, taken in turns in one process, in milliseconds: of the forward pass, and of forward and backward
together, which FlexAttention does not have on CPUs. What each builds once and keeps (steps, block masks, compiled code) is
built before. Times while other processes are at work do not count, unless there are no others ("busy" names them).
FlexAttention needs a C++ compiler.
"""

import argparse
import datetime
import json
import platform
import shutil
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from patterns import PATTERNS, pairs_of
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import patternc as pc
from patternc.dense import Evaluator
from patternc.scalar import evaluate


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Probe:
    """Whether other processes keep the processor busy: a small product then takes longer than it ever did."""

    def __init__(self):
        self._factor = torch.randn(512, 512)
        self._best = min(self._once() for _ in range(20))

    def _once(self):
        return seconds(lambda: [self._factor @ self._factor for _ in range(4)])

    def is_quiet(self):
        taken = self._once()
        self._best = min(self._best, taken)
        return taken < 1.3 * self._best


def in_turns(calls, rounds, probe):
    """Median milliseconds of each call, after one that does not count; of quiet moments, where there are enough of them."""
    quiet, every = ({name: [] for name in calls} for _ in range(2))
    for i in range(4 * rounds + 1):
        for name, call in calls.items():
            if len(quiet[name]) < rounds:
                before = probe.is_quiet()
                taken = 1e3 * seconds(call)
                every[name] += [taken] if i else []
                quiet[name] += [taken] if i and before and probe.is_quiet() else []
    found = {name: median(quiet[name] or every[name]) for name in calls}
    return found | {"busy": [name for name in calls if not quiet[name]]}


def dense_mask(expression, n, heads):
    """(n, n), or (heads, n, n) where heads differ."""
    pattern = pc.parse(expression)
    if pattern.meaning().is_static:
        return torch.from_numpy(pattern.mask(n))
    return torch.from_numpy(np.stack([pattern.mask(n, head) for head in range(heads)]))


def mask_mod(expression, n, heads, block=64):
    """The pattern for FlexAttention, by its closed form or, with random blocks, its table of blocks."""
    meaning = pc.parse(expression).meaning()
    if meaning.is_static:
        predicate = meaning.static.predicate
        return lambda b, h, q, k: evaluate(predicate, {"q": q, "k": k, "n": n}, torch)
    first = np.arange(0, n, block)
    tables = [Evaluator(meaning, n, head, {}).holds(first[:, None], first[None, :]) for head in range(heads)]
    table = torch.from_numpy(np.stack(tables))
    return lambda b, h, q, k: table[h, q // block, k // block]


def flex_forward(expression, q, k, v):
    n, heads = q.shape[2], q.shape[1]
    per_head = None if pc.parse(expression).meaning().is_static else heads
    torch._dynamo.reset()
    blocks = torch.compile(create_block_mask)(mask_mod(expression, n, heads), None, per_head, n, n, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=blocks)


def measure(expression, n, heads, dim, rounds, flex, probe):
    q, k, v = (torch.randn(1, heads, n, dim) for _ in range(3))
    grad = torch.randn_like(q)
    mask = dense_mask(expression, n, heads)
    sparse = pc.compile(expression, backend="torch")
    dense = lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # noqa: E731
    row = {"pattern": expression, "n": n, "density": pairs_of(expression, n) / n**2}

    calls = {"patternc_ms": lambda: sparse(q, k, v), "sdpa_dense_mask_ms": lambda: dense(q, k, v)}
    if expression == "causal":
        calls["sdpa_is_causal_ms"] = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    with torch.no_grad():
        out = sparse(q, k, v)
        row["difference"] = (out - dense(q, k, v)).abs().max().item()
        if flex:
            try:
                calls["flex_ms"] = flex_forward(expression, q, k, v)
                row["flex_difference"] = (out - calls["flex_ms"]()).abs().max().item()
            except Exception as error:  # a peer that fails is a result too
                calls.pop("flex_ms", None)
                row["flex_error"] = repr(error)[:300]
        row |= in_turns(calls, rounds, probe)

    leaves = [t.requires_grad_() for t in (q, k, v)]
    trained = {"patternc_train_ms": sparse, "sdpa_dense_mask_train_ms": dense}
    passes = {name: lambda f=f: torch.autograd.grad(f(*leaves), leaves, grad) for name, f in trained.items()}
    found = in_turns(passes, max(1, rounds // 2), probe)
    row |= found | {"busy": row["busy"] + found["busy"]}
    row["ratio_sdpa"] = row["sdpa_dense_mask_ms"] / row["patternc_ms"]
    row["ratio_flex"] = row["flex_ms"] / row["patternc_ms"] if "flex_ms" in row else None
    row["ratio_sdpa_train"] = row["sdpa_dense_mask_train_ms"] / row["patternc_train_ms"]
    return row


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", default="4096,16384")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patterns", default=";".join(PATTERNS), help="names, separated by semicolons")
    parser.add_argument("--commit", default="", help="what was measured")
    parser.add_argument("--out")
    args = parser.parse_args()
    compiler = shutil.which("g++") or shutil.which("clang++")
    torch._dynamo.config.recompile_limit = 1000
    torch.manual_seed(0)
    probe = Probe()
    rows = []
    for n in map(int, args.n.split(",")):
        for name in args.patterns.split(";"):
            rows.append(measure(PATTERNS[name], n, args.heads, args.dim, args.rounds, compiler is not None, probe))
            print(json.dumps(rows[-1]), flush=True)
    report = {
        "what": "forward, and forward with backward (train), on a CPU, float32, batch 1; median milliseconds",
        "heads": args.heads,
        "dim": args.dim,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "machine": platform.machine(),
        "compiler": compiler is not None or "none: FlexAttention was not measured",
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "commit": args.commit,
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    if args.out:
        Path(args.out).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
