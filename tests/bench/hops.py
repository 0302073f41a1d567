"""How long hop diameters take: each in a process of its own, from the parsed pattern to the verdict and its certificate.

    python tests/bench/hops.py --out tests/bench/results/hops_2cores.json

For every pattern the number, the seconds, and the most memory that the process held, in MiB; whether the separate verifier
accepts the certificate, and how long that takes. Parsing is apart: most of it is reading the grammar, once a process.
"""

import argparse
import datetime
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

MILLION = 1_000_000
# expression, n (None: for every n), the number expected (None: whatever comes out), the seconds it may take
ROWS = [
    ("causal & window(4096)", MILLION, 245, 0.1),
    ("causal & (window(1024) | sinks(4))", MILLION, 978, 0.1),
    ("local(512) | global([0])", MILLION, 2, 0.5),
    ("local(512) | global([0])", None, 2, 0.5),
    ("causal & (window(1024) | stride(1024))", MILLION, 2, 0.5),
    ("causal & (window(1024) | stride(1024))", None, 2, 0.5),
    ("causal & (chunk(1024) | summary(1024, 8))", MILLION, 2, 0.5),
    ("causal & (chunk(1024) | summary(1024, 8))", None, 2, 0.5),
    ("causal & window(512, dilation=4)", MILLION, math.inf, 0.1),
    ("causal & (window(512, dilation=4) | window(8))", MILLION, 491, 0.5),
    ("layers(5 * (causal & window(1024)) + causal)", MILLION, 6, 0.5),
    ("stride(1024) | window(256)", MILLION, 4, 2.0),
    ("causal & (window(1024) | random(3))", MILLION, None, 10.0),
    ("window(192) | random(3)", MILLION, None, 10.0),
    ("random(3)", MILLION, math.inf, 2.0),
]


def measure(expression, n):
    """One row, in this process."""
    import patternc as pc
    from patternc.analysis.reach import hop_diameter
    from patternc.analysis.verify import verify

    start = time.perf_counter()
    pattern = pc.parse(expression)
    parsed = time.perf_counter() - start
    start = time.perf_counter()
    verdict = hop_diameter(pattern, n)
    taken = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    complaints = verify(pattern, verdict)
    return {
        "pattern": expression,
        "n": n,
        "status": verdict.status,
        "hops": "infinity" if verdict.value == math.inf else verdict.value,
        "lower": verdict.lower,
        "upper": "infinity" if verdict.upper == math.inf else verdict.upper,
        "seconds": round(taken, 4),
        "parse_seconds": round(parsed, 4),
        "mebibytes": round(memory),
        "certificate": None if verdict.certificate is None else type(verdict.certificate).__name__,
        "verified": not complaints,
        "verify_seconds": round(time.perf_counter() - start, 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row is not None:
        print(json.dumps(measure(*ROWS[options.row][:2])))
        return
    results = []
    for index, (expression, n, hops, limit) in enumerate(ROWS):
        done = subprocess.run([sys.executable, __file__, "--row", str(index)], capture_output=True, text=True, check=True)
        row = {**json.loads(done.stdout), "limit_seconds": limit}
        wanted = "infinity" if hops == math.inf else hops
        late = " LATE" if row["seconds"] > limit else ""
        wrong = " WRONG" if wanted not in (None, row["hops"]) else ""
        print(f"{expression:52} n = {n or 'every':>8} {row['hops']!s:>8} {row['seconds']:8.3f} s{late}{wrong}", flush=True)
        results.append(row)
    if options.out:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        data = {"date": str(datetime.date.today()), **machine, "results": results}
        options.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
