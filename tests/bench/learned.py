"""Learned selection on one GPU: the parts of DeepSeek's sparse attention and of native sparse attention, and their peers.

    python tests/bench/learned.py --out tests/bench/results/h200_learned.json

Medians of CUDA-event timings with a cold L2 cache (`triton.testing.do_bench`), in milliseconds, in one process. Lists of keys
are drawn at random among those before each query, which is the hardest case for caches. Peers: torch.topk, the dense causal
attention of torch (FlashAttention-2 and cuDNN), and fla-core's kernels for the selected blocks of NSA where it is installed.
A row that fails has its reason in ``note``; the file is written anew after each row.
"""

import argparse
import datetime
import gc
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.testing import do_bench

import patternc as pc
from patternc.runtime import operator
from patternc.runtime.compile import serving

BF16 = {"device": "cuda", "dtype": torch.bfloat16}


def timed(run, reps=60):
    return do_bench(run, warmup=10, rep=reps, return_mode="median")


def randn(*shape):
    return torch.randn(*shape, **BF16)


def drawn(heads, n, width, block):
    """Ascending lists (1, heads, n, width) of key blocks that begin before each query, -1 where there are fewer."""
    blocks, out = -(-n // block), torch.empty(1, heads, n, width, dtype=torch.int32, device="cuda")
    for start in range(0, n, 2048):
        q = torch.arange(start, min(n, start + 2048), device="cuda")
        seen = torch.arange(blocks, device="cuda") <= q[:, None] // block
        scores = torch.rand(heads, len(q), blocks, device="cuda").masked_fill_(~seen, -1)
        best, index = scores.topk(width, -1)
        index = torch.where(best < 0, blocks, index).sort(-1).values
        out[0, :, start : start + len(q)] = torch.where(index == blocks, -1, index)
    return out


class Kernels:
    """The emitted kernels of a pattern with one selection, called with lists that are given."""

    def __init__(self, text, q, k, v, lists):
        request = operator.request_of(q, v)
        module = operator.module_of(text, 0, serving(pc.parse(text), None, request), q, v)
        self.given = q, k, v, {}, [lists], q.shape[-1] ** -0.5
        self.forward = lambda: module.forward(*self.given)
        self.module = module

    def backward(self):
        out, lse = self.forward()
        grad, grad_lse = torch.randn_like(out), torch.zeros_like(lse)
        return lambda: self.module.backward(*self.given, out, lse, grad, grad_lse)


def both(kernels, flops):
    """Times of the output and of the gradients, which do two and a half times the products."""
    forward, backward = timed(kernels.forward), timed(kernels.backward())
    return {
        "forward_ms": forward,
        "forward_tflops": flops / forward / 1e9,
        "backward_ms": backward,
        "backward_tflops": 2.5 * flops / backward / 1e9,
    }


def dsa(n, grads):
    """Multi-head latent attention of 128 heads (576 dims, 512 of them values) to 2,048 keys of each query."""
    q, k = randn(1, 128, n, 576), randn(1, 1, n, 576)
    lists = drawn(1, n, 2048, 1)
    flops = 2 * 128 * int((lists >= 0).sum()) * (576 + 512)
    kernels = Kernels("causal & topk(s, 2048)", q, k, k[..., :512], lists)
    if grads:
        return both(kernels, flops)
    forward = timed(kernels.forward)
    return {"forward_ms": forward, "forward_tflops": flops / forward / 1e9}


def layer(n):
    """The same from scores on: indexer of 64 heads of 128 dims, selection, attention; by the public call, without gradients."""
    q, k = randn(1, 128, n, 576), randn(1, 1, n, 576)
    given = {"indexer_q": randn(1, 64, n, 128), "indexer_k": randn(1, 1, n, 128), "indexer_w": randn(1, 64, n)}
    attention = pc.compile("causal & topk(indexer(heads=64, dim=128), 2048)")
    attention(q, k, k[..., :512], **given)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attention(q, k, k[..., :512], **given)
    peak = torch.cuda.max_memory_allocated() - before
    return {"forward_ms": timed(lambda: attention(q, k, k[..., :512], **given), 1), "peak_bytes": peak}


def indexer(rows, n):
    """The scores of the lightning indexer for some queries and all keys."""
    module = operator.module_of("causal & topk(indexer(heads=64, dim=128), 2048)", 0, "triton", *[randn(1, 1, 1, 128)] * 2)
    q, k, w = randn(1, 64, rows, 128), randn(1, 1, n, 128), torch.randn(1, 64, rows, device="cuda")
    forward = timed(lambda: module.indexed(q, k, w))
    return {"forward_ms": forward, "forward_tflops": 2 * 64 * 128 * rows * n / forward / 1e9}


def selection(rows, n, k):
    """The best keys of each row of scores, in ascending order; torch.topk leaves them in any order."""
    module = operator.module_of("causal & topk(s, 2048)", 0, "triton", *[randn(1, 1, 1, 128)] * 2)
    scores = torch.randn(1, 1, rows, n, device="cuda")
    every = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="cuda")
    mine = timed(lambda: module.picks(scores, every, None, ~every, k, k))
    return {"forward_ms": mine, "torch_topk_ms": timed(lambda: scores.topk(k, -1, sorted=False))}


def nsa(n):
    """Native sparse attention: 64 query heads, 4 key heads, 16 blocks of 64 keys, without and with a window of 512."""
    q, k, v = randn(1, 64, n, 128), randn(1, 4, n, 128), randn(1, 4, n, 128)
    lists = drawn(4, n, 16, 64)
    flops = 4 * 128 * 16 * int((lists >= 0).sum()) * 64
    found = {"selected": both(Kernels("causal & topk(s, 16, block=64, share=group)", q, k, v, lists), flops)}
    text = "causal & (window(512) | topk(s, 16, block=64, share=group))"
    found["with_window"] = both(Kernels(text, q, k, v, lists), flops + 4 * 128 * 64 * 512 * n)
    for name, which in (("sdpa_flash", SDPBackend.FLASH_ATTENTION), ("sdpa_cudnn", SDPBackend.CUDNN_ATTENTION)):
        found[name] = noted(dense, which, q, k, v)
    found["fla_core"] = noted(fla_core, q, k, v, lists)
    return found


def importance(n):
    """NSA's importance of key blocks for all queries: compressed keys of 32 positions every 16, 64 query and 4 key heads."""
    module = operator.module_of("nsa_selected", 0, "triton", *[randn(1, 1, 1, 128)] * 2)
    q, keys, sizes = randn(1, 64, n, 128), randn(1, 4, (n - 32) // 16 + 1, 128), (32, 16, 64, n // 64)
    lse, found = randn(1, 64, n).float(), {}
    for name, given in (("16-bit keys", (keys, None)), ("means", (keys.float(), None)), ("log-sum-exp given", (keys, lse))):
        forward = timed(lambda given=given: module.importance(torch, q, given[0], 128**-0.5, 0, sizes, True, given[1]))
        found[name] = {"forward_ms": forward, "products_tflops": 2 * 64 * n * (n // 16) / 2 * 2 * 128 / forward / 1e9}
    return found


def moba(n, heads, kv_heads, grads):
    """MoBA with 12 blocks of 4,096, from queries and keys to the output (and gradients), by the public call."""
    q, k, v = randn(1, heads, n, 128), randn(1, kv_heads, n, 128), randn(1, kv_heads, n, 128)
    attend = pc.compile("moba")
    leaves = [t.clone().requires_grad_() for t in (q, k, v)] if grads else (q, k, v)
    out = attend(*leaves)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = attend(*leaves)
    found = {"forward_ms": timed(lambda: attend(q, k, v), 1), "peak_bytes": torch.cuda.max_memory_allocated() - before}
    if grads:
        grad = torch.randn_like(out)
        found["backward_ms"] = timed(lambda: out.backward(grad, retain_graph=True))
    for name, which in (("sdpa_flash", SDPBackend.FLASH_ATTENTION), ("sdpa_cudnn", SDPBackend.CUDNN_ATTENTION)):
        found[name] = noted(dense, which, q, k, v) if grads else None
    return found


def dense(which, q, k, v):
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    with sdpa_kernel(which):
        forward = timed(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
        out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
        grad = torch.randn_like(out)
        return {"forward_ms": forward, "backward_ms": timed(lambda: out.backward(grad, retain_graph=True))}


def fla_core(q, k, v, lists):
    """The selected blocks alone, as its own kernels take them."""
    from fla.ops.nsa.parallel import ParallelNSAFunction

    q, k, v = (t.transpose(1, 2).contiguous().requires_grad_() for t in (q, k, v))
    blocks = lists.transpose(1, 2).contiguous().long()
    counts = (blocks >= 0).sum(-1)
    run = lambda: ParallelNSAFunction.apply(q, k, v, blocks.clamp(min=0), counts, 64, 128**-0.5, None)  # noqa: E731
    out = run()
    out = out[0] if isinstance(out, tuple) else out
    grad = torch.randn_like(out)
    return {"forward_ms": timed(run), "backward_ms": timed(lambda: out.backward(grad, retain_graph=True))}


def noted(run, *given):
    try:
        return run(*given)
    except Exception as error:  # a peer may fail in any way
        return {"note": f"{type(error).__name__}: {error}"[:300]}


ROWS = {
    "dsa attention, n=65536": (dsa, 65536, False),
    "dsa attention, n=16384": (dsa, 16384, True),
    "indexer scores, 4096 x 131072": (indexer, 4096, 131072),
    "selection, 2048 of 131072": (selection, 1024, 131072, 2048),
    "selection, 2048 of 65536": (selection, 1024, 65536, 2048),
    "nsa, n=65536": (nsa, 65536),
    "nsa importance, n=65536": (importance, 65536),
    "moba, n=131072": (moba, 131072, 8, 2, True),
    "moba, n=1048576": (moba, 1 << 20, 8, 2, False),
    "dsa layer, n=32768": (layer, 32768),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="parts of the names of rows, with commas between; all by default")
    parser.add_argument("--commit", default="", help="what was measured")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    torch.manual_seed(0)
    found = {
        "device": torch.cuda.get_device_name(),
        **{name: installed(name) for name in ("torch", "triton", "fla-core")},
        "commit": args.commit,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "dtype": "bfloat16",
        "rows": {},
    }
    for name, (run, *given) in ROWS.items():
        if any(part.strip() in name for part in args.rows.split(",")):
            found["rows"][name] = noted(run, *given)
            args.out.write_text(json.dumps(found, indent=1) + "\n")
            print(name, json.dumps(found["rows"][name]), flush=True)
            gc.collect()
            torch.cuda.empty_cache()


def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
