"""Finds matrix products of a kernel whose addresses are in uniform registers that some path to them leaves unset.

The assembler of CUDA 12.8 compiles some correct kernels so: addresses of matrix products are then what was there before.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

NVDISASM = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
_TO_UNIFORM = {"R2UR", "S2UR", "VOTEU", "REDUX"}  # and those whose name begins with U, but for these
_ONLY_READ = {"UISETP", "UTMALDG", "UTMASTG", "UTMAPF", "UTMACCTL", "UBLKCP", "USETMAXREG"}


@dataclass
class Instruction:
    """One instruction: the registers that it sets and reads, and the places of those that may follow."""

    text: str
    sets: frozenset[int]
    reads: frozenset[int]
    next: list[int]


def unset_reads(cubin):
    """The matrix products of a compiled kernel whose addresses may be unset, as text.

    Of other instructions it cannot say: what a path leaves unset may be what that path does not use.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([NVDISASM, "-c", file.name], capture_output=True, text=True, check=True).stdout
    return [text for text in unset_in(instructions(listing)) if "gdesc[" in text]


def unset_in(kernel):
    """Set on all paths from the start is what is set before on every path; every instruction is looked at until that is so."""
    before = {0: frozenset()}
    waiting = [0]
    while waiting:
        i = waiting.pop()
        after = before[i] | kernel[i].sets
        for j in kernel[i].next:
            common = before.get(j, after) & after
            if common != before.get(j):
                before[j] = common
                waiting.append(j)
    return [kernel[i].text for i in sorted(before) if kernel[i].reads - before[i]]


def instructions(listing):
    """The instructions of what nvdisasm prints."""
    texts, labels = [], {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(texts)
        elif text := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            texts.append(text[1])
    return [_instruction(text, i, labels, len(texts)) for i, text in enumerate(texts)]


def _instruction(text, place, labels, length):
    predicate, name, rest = re.match(r"(@!?U?P\w+\s+)?(\S+)\s*(.*)", text).groups()
    operands = [operand.strip() for operand in rest.split(",")]
    kind = name.split(".")[0]
    target = re.search(r"`\((\.L_x_\d+)\)", text)
    conditional = bool(predicate) or any(re.match(r"!?U?P\d", operand) for operand in operands)
    follows = [labels[target[1]]] if kind == "BRA" and target else []
    if kind not in ("BRA", "EXIT", "RET") or conditional:
        follows.append(place + 1)
    while operands and re.fullmatch(r"U?P(\d|T)", operands[0]):  # predicates that it sets besides
        operands.pop(0)
    wide = 4 if ".128" in name else 2 if ".64" in name or ".WIDE" in name else 1
    sets, reads = set(), set()
    for i, operand in enumerate(operands):
        for register in map(int, re.findall(r"\bUR(\d+)", operand)):
            if "gdesc[" in operand:  # two descriptors of 64 bits; the first is not read where its tile is in registers
                reads |= set(range(register + 2 * bool(re.match(r"R\d", operands[1])), register + 4))
            elif i == 0 and (kind in _TO_UNIFORM or (kind[0] == "U" and kind not in _ONLY_READ)):
                sets |= set(range(register, register + wide))
            elif "desc[" in operand or (".64" in name and "[" not in operand):
                reads |= {register, register + 1}
            else:
                reads.add(register)
    return Instruction(text, frozenset(sets), frozenset(reads), [j for j in follows if j < length])
