"""The thirteen patterns against FlexAttention's TRITON and FLASH backends, side by side in one process on one GPU.

    python tests/bench/gpu.py --backward --out tests/bench/results/h200.json

It measures as `patternc bench` does: medians of CUDA-event timings with a cold L2 cache, in milliseconds, in turns;
FlexAttention's without the time to build its block masks (`mask_ms`). Every pattern and n is one line of JSON, and the
file is written anew after each, so that a run that is stopped loses one row at most. A peer that fails has its reason in
`note`; FLASH needs flash-attn-4.
"""

import argparse
import datetime
import json
import time
from pathlib import Path

import torch
from patterns import chosen

import patternc as pc
from patternc.runtime import bench

PEERS = {"TRITON": "flex", "FLASH": "flex-flash", "FA4": "flash-attn", "CUDNN": "sdpa-cudnn"}
OVERHEAD_CALLS = 200
OVERHEAD_LENGTHS = (512, 1024, 2048, 4096)


def parsed(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", default="32768", help="lengths, with commas between")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backward", action="store_true", help="also time the backward pass")
    parser.add_argument("--peers", default="TRITON,FLASH", help="which of them, or an empty text")
    parser.add_argument("--patterns", default="", help="names, with commas between; write '; ' for a comma in a name")
    parser.add_argument("--graph-overhead", action="store_true", help="also time the host's part of a call, at small n")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which rows are skipped")
    parser.add_argument("--commit", default="", help="what was measured")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    args = parser.parse_args(arguments)
    try:
        args.lengths = [int(n) for n in args.n.split(",")]
        args.chosen = chosen(args.patterns)
        peers = tuple(PEERS[name.strip()] for name in args.peers.split(",") if name.strip())
        args.setting = bench.Setting(
            device=args.device,
            dtype=args.dtype,
            batch=args.batch,
            heads=args.heads,
            kv_heads=args.kv_heads,
            head_dim=args.head_dim,
            backward=args.backward,
            peers=peers,
        )
    except KeyError as error:
        parser.error(f"no peer {error}; there are {', '.join(PEERS)}")
    except ValueError as error:
        parser.error(str(error))
    return args


def row_or_error(n, measured):
    """One row; whatever stops it is recorded."""
    try:
        return measured()
    except Exception as error:
        return {"n": n, "error": f"{type(error).__name__}: {error}"[:300]}


def overhead(n, setting):
    """Microseconds of a call in a loop that does not wait for the device, and of one that waits at its end."""
    device, dtype = torch.device(setting.device), getattr(torch, setting.dtype)
    shapes = [(setting.batch, heads, n, setting.head_dim) for heads in (setting.heads, setting.kv_heads, setting.kv_heads)]
    q, k, v = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
    attention, gqa = pc.compile("causal"), setting.heads != setting.kv_heads
    calls = {
        "patternc": lambda: attention(q, k, v),
        "sdpa-causal": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa),
    }
    return {"n": n, **{name: looped(call, device) for name, call in calls.items()}}


def looped(call, device):
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(10):
        call()
    wait()
    start = time.perf_counter()
    for _ in range(OVERHEAD_CALLS):
        call()
    launched = time.perf_counter() - start
    wait()
    done = time.perf_counter() - start
    return {"launch_us": 1e6 * launched / OVERHEAD_CALLS, "wall_us": 1e6 * done / OVERHEAD_CALLS}


def write(report, path):
    """Replace the file whole: a reader never sees half of it."""
    if path is None:
        return
    partly = path.with_suffix(".partial")
    partly.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partly.replace(path)


def main(arguments=None):
    args = parsed(arguments)
    start = time.monotonic()
    report = {
        **bench.machine(args.setting.device),
        "commit": args.commit,
        "date": datetime.date.today().isoformat(),
        **bench.shape_json(args.setting),
        "backward": args.setting.backward,
        "ceilings": None,
        "rows": [],
        "overhead": [],
    }
    ceilings = bench.measure_ceilings(args.setting)
    report["ceilings"] = ceilings.to_json()
    print(json.dumps({key: value for key, value in report.items() if key not in ("rows", "overhead")}), flush=True)

    def add(key, row):
        report[key].append(row)
        print(json.dumps(row), flush=True)
        write(report, args.out)

    if args.graph_overhead:
        for n in OVERHEAD_LENGTHS:
            add("overhead", row_or_error(n, lambda n=n: overhead(n, args.setting)))
    for n in args.lengths:
        for name, expression in args.chosen.items():
            head = {"name": name, "pattern": expression}
            if time.monotonic() - start > args.budget:
                add("rows", {**head, "n": n, "skipped": f"the budget of {args.budget:g} s was spent"})
                continue
            pattern = pc.parse(expression)
            row = row_or_error(n, lambda p=pattern, n=n: bench.measure(p, n, args.setting, ceilings).to_json())
            add("rows", {**head, **row})
    write(report, args.out)


if __name__ == "__main__":
    main()
