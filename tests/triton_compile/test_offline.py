"""Every preset's Triton kernel compiles for real GPUs on a machine that has none: no spills, shared memory under the limit.

Runs in a process of its own, without the interpreter. bf16, head_dim 64 and 128 (and 256 for a few).
"""

import json
import os
import re

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("one process cannot both interpret and compile", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import patternc as pc
from patternc.backend import Request
from patternc.runtime.compile import emit_source
from patternc.runtime.loader import load

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, "gfx942": 64 * 1024}
TARGETS = {80: GPUTarget("cuda", 80, 32), 90: GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
EVERY = sorted(pc.presets())
POINTERS = {"lse_ptr": "*fp32"}


def kernels(module):
    return [value for name, value in vars(module).items() if re.fullmatch(r"kernel_g\d+", name)]


def compile_kernel(module, kernel, head_dim, element, target):
    """Compile one kernel as a call with contiguous tensors would."""
    block = max(16, triton.next_power_of_2(head_dim))
    constants = {
        "FIRST": 0,
        "RUN": 1,
        "PERIOD": 1,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": head_dim,
        "BLOCK_D": block,
        "BLOCK_V": block,
        "ROWS": module.ROWS,
        "COLUMNS": module.COLUMNS,
        **{f"stride_{t}d": 1 for t in "qkv"},
    }
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("q_ptr", "k_ptr", "v_ptr", "out_ptr"):
            signature[name] = f"*{element}"
        elif name == "scale":
            signature[name] = "fp32"
        elif name == "lse_ptr":
            signature[name] = "*fp32"
        elif re.fullmatch(r"a\d+_ptr", name):
            signature[name] = "*u8" if f"{name[:-4]}_r" in kernel.arg_names else "*i32"
        elif re.fullmatch(r"(first|end)_\d+_\d+|(list|count|keys)_\d+", name):
            signature[name] = "*i32"
        else:
            signature[name] = "i32"
        if signature[name].startswith("*") or name.startswith("stride_"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            attributes.pop((i,), None)
    source = ASTSource(kernel, signature, constants, attributes)
    options = module.launch_options(block, 4 if element == "fp32" else 2, 0 if target.backend == "hip" else target.arch // 10)
    return triton.compile(source, target=target, options=options)


def module_of(name, head_dim, arch, dtype="bfloat16"):
    pattern = pc.preset(name).layer(0)
    generation = 0 if arch == "gfx942" else arch // 10
    return load(emit_source(pattern, "triton", None, Request("cuda", dtype, head_dim, head_dim, 4096, generation)))


@pytest.mark.parametrize("arch", [90, 80, "gfx942"])
@pytest.mark.parametrize("name", EVERY)
def test_presets_compile(name, arch):
    """Compiled, within shared memory; on NVIDIA without spills."""
    module = module_of(name, 128, arch)
    for kernel in kernels(module):
        compiled = compile_kernel(module, kernel, 128, "bf16", TARGETS[arch])
        assert compiled.metadata.shared <= SHARED_LIMIT[arch], f"{compiled.metadata.shared} bytes of shared memory"
        print(name, arch, compiled.metadata.shared)
