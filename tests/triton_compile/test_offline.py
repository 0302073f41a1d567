"""Every preset's Triton kernel compiles for real GPUs on a machine that has none.

No registers spill, shared memory is under the chip's limit, and on sm_90 tiles go through its asynchronous matrix instructions.
Runs in a process of its own, without the interpreter.
"""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

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
from patternc.lower.plan import Gather
from patternc.runtime.compile import emit_source, plan_for
from patternc.runtime.loader import load

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, "gfx942": 64 * 1024}
TARGETS = {80: GPUTarget("cuda", 80, 32), 90: GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
EVERY = sorted(pc.presets())
STACK_OF_FLOAT32 = 64  # bytes that float32 kernels, which multiply without the matrix unit, may keep on the stack
SERIALISED = ["gemma3", "nsa_selected", "sparse_fixed", "sparse_fixed_heads", "sparse_strided_layers", "streaming_llm"]
SERIALISED_64: list[str] = []
SOME = ["bigbird", "flagship", "flash_causal", "longformer", "mistral", "sparse_strided"]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


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
        elif name in ("lse_ptr", "prior_ptr"):
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


@cache
def kernels_of(name, head_dim, arch, dtype):
    """The compiled kernels of a preset, each with the phases that it runs."""
    pattern = busiest_layer(pc.preset(name))
    generation = 0 if arch == "gfx942" else arch // 10
    request = Request("cuda", dtype, head_dim, head_dim, 4096, generation)
    module = load(emit_source(pattern, "triton", None, request))
    element = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[dtype]
    groups = plan_for(pattern, None, "triton", request).heads
    compiled = [compile_kernel(module, kernel, head_dim, element, TARGETS[arch]) for kernel in kernels(module)]
    return [(kernel, group.phases) for kernel, group in zip(compiled, groups, strict=True)]


def busiest_layer(pattern):
    """The layer whose kernels do the most."""
    layers = [pattern.layer(i) for i in range(pattern.layers)]
    return max(layers, key=lambda layer: len(str(layer.meaning().terms)))


def usage(compiled, tmp_path):
    """Registers, stack and local memory of a cubin, in bytes."""
    file = tmp_path / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])
    shown = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", shown)}
    assert set(found) == {"REG", "STACK", "LOCAL"}, shown
    return found


def warnings(compiled, arch, tmp_path):
    """What the assembler says about a kernel: it may serialise matrix instructions, and only warns."""
    file = tmp_path / "kernel.ptx"
    file.write_text(compiled.asm["ptx"])
    command = [TOOLS / "ptxas", f"-arch=sm_{arch}a", "-v", file, "-o", tmp_path / "kernel.out"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def check(name, head_dim, arch, dtype, tmp_path):
    for compiled, phases in kernels_of(name, head_dim, arch, dtype):
        assert compiled.metadata.shared <= SHARED_LIMIT[arch], f"{compiled.metadata.shared} bytes of shared memory"
        if arch == "gfx942":
            assert re.search(r"\.vgpr_spill_count:\s+0\b", compiled.asm["amdgcn"])
            continue
        used = usage(compiled, tmp_path)
        assert used["STACK"] <= (STACK_OF_FLOAT32 if dtype == "float32" else 0), used
        assert used["LOCAL"] == 0, used
        tiles = [phase for phase in phases if not isinstance(phase, Gather)]
        if arch == 90 and tiles and dtype != "float32":
            assert "wgmma.mma_async" in compiled.asm["ptx"]


def known(cases, reason):
    """Parameters (name, x), those of ``cases`` expected to fail."""
    mark = pytest.mark.xfail(reason=reason, strict=True)
    return lambda *case: pytest.param(*case, marks=mark if case in cases else ())


@pytest.mark.parametrize(("name", "arch"), [(name, arch) for name in EVERY for arch in TARGETS])
def test_presets(name, arch, tmp_path):
    check(name, 128, arch, "bfloat16", tmp_path)


SERIAL = known(
    {(name, 128) for name in SERIALISED} | {(name, 64) for name in SERIALISED_64}, "loops with a mask after loops without"
)


@pytest.mark.parametrize(("name", "head_dim"), [*(SERIAL(name, 128) for name in EVERY), *(SERIAL(name, 64) for name in SOME)])
def test_matrix_instructions_overlap(name, head_dim, tmp_path):
    """The assembler serialises them where it must, and only says so."""
    for compiled, _ in kernels_of(name, head_dim, 90, "bfloat16"):
        said = warnings(compiled, 90, tmp_path)
        assert "spill" in said  # it does report: "0 bytes spill stores"
        assert not re.search(r"C75\d\d", said), said


WIDE = known({("flagship", 256, 80)}, "its phases keep too much alive on sm_80")


@pytest.mark.parametrize(
    ("name", "head_dim", "arch"), [WIDE(name, head_dim, arch) for name in SOME for head_dim in (64, 256) for arch in TARGETS]
)
def test_head_dims(name, head_dim, arch, tmp_path):
    check(name, head_dim, arch, "bfloat16", tmp_path)


FLOAT32 = known({("bigbird", 80), ("bigbird", 90), ("mistral", 90)}, "without the matrix unit the operands of a tile spill")


@pytest.mark.parametrize(("name", "arch"), [FLOAT32(name, arch) for name in ("bigbird", "mistral") for arch in TARGETS])
def test_float32(name, arch, tmp_path):
    check(name, 128, arch, "float32", tmp_path)


def test_head_dims_that_are_no_power_of_two(tmp_path):
    for head_dim in (80, 96, 192):
        check("mistral", head_dim, 90, "float16", tmp_path)
