"""The corpus: programs that the language accepts, and programs that it refuses with one pinned diagnostic each."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from patternc import PatternError, parse
from patternc.language.parser import MAX_ITEMS, MAX_SOURCE_BYTES, parse_program
from patternc.language.primitives import PRIMITIVES
from patternc.language.printer import show
from patternc.language.resolve import resolve, walk
from patternc.language.scoring import SCORERS
from patternc.language.syntax import Call, Chain, Name, Unary
from patternc.testing import oracle_mask, random_inputs

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "grammar" / "corpus"
ACCEPT = sorted((CORPUS / "accept").glob("*.pat"))
REJECT = sorted((CORPUS / "reject").glob("*.pat"))
GENERATED = {"source-too-long", "list-too-long"}  # too big to store: see below
NEEDS_A_PATTERN = {"which-layer", "unknown-branch"}  # raised by methods of a pattern: see test_errors.py


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8")


@pytest.mark.parametrize("path", ACCEPT, ids=lambda path: path.stem)
def test_accepted(path: Path) -> None:
    program = parse_program(text_of(path), path.name)
    assert parse_program(show(program)) == program
    pattern = parse(text_of(path))
    assert parse(str(pattern)) == pattern
    for layer in range(pattern.layers):
        for head in range(pattern.heads):
            inputs = random_inputs(pattern, 13, seed=head)
            want = oracle_mask(pattern, 13, head, layer, **inputs)
            assert np.array_equal(pattern.mask(13, head, layer=layer, **inputs), want)


def test_accepted_programs_use_the_whole_language() -> None:
    used: set[str] = set()
    for path in ACCEPT:
        for node in walk(resolve(parse_program(text_of(path)))):
            match node:
                case Name(name) | Call(name):
                    used.add(name)
                case Unary(operator):
                    used.add(f"unary {operator}")
                case Chain(_, operators):
                    used.update(operators)
    signs = {"|", "&", "-", "+", "*", "//", "%", "<", "<=", ">=", "==", "!=", "and", "or", "unary ~", "unary -", "unary not"}
    assert (
        used
        >= PRIMITIVES.keys()
        | SCORERS.keys()
        | {"where", "heads", "layers", "gated", "true", "false", "all", "q", "k", "n"}
        | signs
    )


@pytest.mark.parametrize("path", REJECT, ids=lambda path: path.stem)
def test_rejected(path: Path) -> None:
    with pytest.raises(PatternError) as caught:
        parse(text_of(path), path.name)
    assert caught.value.diagnostic.to_json() == json.loads(path.with_suffix(".err").read_text("utf-8"))


def test_every_rejected_program_has_its_diagnostic() -> None:
    assert {path.stem for path in REJECT} == {path.stem for path in (CORPUS / "reject").glob("*.err")}
    assert len(ACCEPT) >= 25


def test_every_code_is_rejected_somewhere() -> None:
    sources = [*(ROOT / "patternc" / "language").glob("*.py"), ROOT / "patternc" / "pattern.py"]
    raised = set(re.findall(r'PatternError\(\s*"([a-z-]+)"', "".join(path.read_text("utf-8") for path in sources)))
    pinned = {json.loads(path.with_suffix(".err").read_text("utf-8"))["code"] for path in REJECT}
    assert raised - GENERATED - NEEDS_A_PATTERN == pinned


def test_no_message_names_a_token() -> None:
    for path in REJECT:
        found = json.loads(path.with_suffix(".err").read_text("utf-8"))
        text = f"{found['message']} {found['hint']}"
        assert not re.search(r"[A-Z]{3,}|__ANON|\bToken\b", text), f"{path.stem}: {text}"
        assert "None of" not in text
        assert found["message"][0] not in " ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        assert not found["message"].endswith(".")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("source-too-long", "causal #" + "x" * MAX_SOURCE_BYTES),
        ("source-too-long", "causal #" + "é" * (MAX_SOURCE_BYTES // 2)),
        ("list-too-long", f"rows([{','.join(['1'] * (MAX_ITEMS + 1))}])"),
    ],
)
def test_large_sources(code: str, text: str) -> None:
    with pytest.raises(PatternError) as caught:
        parse(text)
    assert caught.value.code == code
    assert len(str(caught.value)) < 600


def test_sources_at_the_limit() -> None:
    source = "causal #"
    assert parse(source + "x" * (MAX_SOURCE_BYTES - len(source))) == parse("causal")
    assert parse(f"rows([{','.join(['1'] * MAX_ITEMS)}])").equivalent("rows([1])")


SPECIFICATION = (ROOT / "grammar" / "SPEC.md").read_text("utf-8")


def test_the_pictures_of_the_specification() -> None:
    pictures = re.findall(r"^```\n(.+)\n((?:[#.] ?[#. ]*\n){8})```$", SPECIFICATION, re.MULTILINE)
    assert len(pictures) == SPECIFICATION.count("```") // 2 >= 8
    for text, picture in pictures:
        rows = [[cell == "#" for cell in line.split()] for line in picture.splitlines()]
        assert np.array_equal(parse(text).mask(8), rows), text
