"""Finds instructions of a kernel that read uniform registers which some path to them leaves unset.

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
    calls: int | None = None


def unset_reads(cubin):
    """The instructions of a compiled kernel that may read what is not set, as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([NVDISASM, "-c", file.name], capture_output=True, text=True, check=True).stdout
    return unset_in(instructions(listing))


def unset_in(kernel):
    before = set_before(kernel, 0)
    return [kernel[i].text for i in sorted(before) if kernel[i].reads - before[i]]


def set_before(kernel, start):
    """What each instruction finds set on all paths from a start, by place.

    That is what is set before on every path; every instruction is looked at until it is so.
    """
    before = {start: frozenset()}
    waiting = [start]
    while waiting:
        i = waiting.pop()
        one = kernel[i]
        for j in one.next:
            after = before[i] | (returned(kernel, one.calls) if one.calls not in (None, j) else one.sets)
            common = before.get(j, after) & after
            if common != before.get(j):
                before[j] = common
                waiting.append(j)
    return before


def returned(kernel, start):
    """What a subroutine sets on all paths to where it returns."""
    return frozenset.intersection(*(found for i, found in set_before(kernel, start).items() if "RET." in kernel[i].text))


def instructions(listing):
    """The instructions of what nvdisasm prints."""
    texts, labels = [], {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+|\$\S+):", line):
            labels[label[1]] = len(texts)
        elif text := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            texts.append(text[1])
    return [_instruction(text, i, labels, len(texts)) for i, text in enumerate(texts)]


def _instruction(text, place, labels, length):
    predicate, name, rest = re.match(r"(@!?U?P\w+\s+)?(\S+)\s*(.*)", text).groups()
    operands = [operand.strip() for operand in rest.split(",")]
    kind = name.split(".")[0]
    target = re.search(r"`\((\S+)\)", text)
    conditional = bool(predicate) or any(re.match(r"!?U?P\d", operand) for operand in operands)
    follows = [labels[target[1]]] if kind in ("BRA", "CALL") and target else []
    calls = follows[0] if kind == "CALL" else None
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
    return Instruction(text, frozenset(sets), frozenset(reads), [j for j in follows if j < length], calls)
