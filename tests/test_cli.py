"""The command line: what it prints, what it returns, and that it needs no torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import patternc as pc
from patternc.cli import main


def run(*arguments: str, stdin: str | None = None, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, list(arguments), input=stdin, prog_name="patternc")


FILE = """
let w = 4
pattern near = causal & window(w)
pattern far = stride(8)
"""


@pytest.fixture
def patterns(tmp_path: Path) -> Path:
    path = tmp_path / "mine.pat"
    path.write_text(FILE)
    return path


def test_help_has_examples() -> None:
    assert "check    " in run("-h").stdout
    for command in ("explain", "show", "check", "emit", "demo", "bench", "report", "presets"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"  patternc {command}" in result.stdout
        assert "--json" in result.stdout
    assert run("--version").stdout == f"patternc {pc.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("causal & window(4)",), 0),
        (("full", "--causal"), 1),
        (("full", "--nonempty", "--self-loops"), 0),
        (("causal & topk(s, 4)",), 1),
        (("random(1, pool=1)", "--causal"), 1),
        (("mistral", "--subset-of", "causal"), 0),
        (("causal", "--subset-of", "mistral"), 1),
        (("causal", "--subset-of", "full", "--subset-of", "mistral"), 1),
        (("chunk(8)", "--equivalent-to", "blocks(8, 0, 0)"), 0),
        (("chunk(8)", "--equivalent-to", "chunk(9)"), 1),
        (("gemma3",), 0),
        (("jamba", "--nonempty"), 1),
        (("causal & (window(64) | stride(64))", "--max-hops", "2"), 0),
        (("causal & (window(64) | stride(64))", "--max-hops", "1"), 1),
        (("mistral", "--n", "1M", "--max-hops", "257", "--causal"), 0),
        (("mistral", "--n", "1M", "--max-hops", "256"), 1),
        (("mistral", "--max-hops", "256"), 1),
        (("jamba", "--max-hops", "5"), 0),
        (("jamba", "--max-hops", "5", "--layers", "8"), 0),
        (("jamba", "--layers", "7"), 1),
        (("causal", "--max-hops", "0", "--n", "1"), 0),
        (("causal", "--max-hops", "0", "--n", "2"), 1),
        (("causal & topk(s, 4)", "--max-hops", "1", "--n", "64"), 1),
        (("bigbird", "--universal", "--hub", "--hamiltonian"), 0),
        (("causal", "--hub"), 1),
        (("causal & stride(2)", "--hamiltonian"), 1),
        (("causal", "--universal"), 1),
        (("full", "--causal", "--n", "1"), 0),
        (("mistral", "--equivalent-to", "causal", "--n", "4096"), 0),
        (("presets",), 0),
        (("presets", "-p", "mistral"), 0),
        (("causal; assert hops <= 1",), 0),
        (("causal; assert hops < 1",), 1),
        (("pattern a = full; assert hub(a)",), 0),
        (("presets", "-p", "mistrl"), 2),
        (("causal", "--max-hops", "-1"), 2),
        (("causal", "--max-hops", "2", "--n", "0"), 2),
        (("causal; assert hop <= 1",), 2),
        (("causal; assert hub(windw(4))",), 2),
        (("pattern a = full; assert hub(a)", "--hub"), 2),
        (("windw(4)",), 2),
        (("causal", "--subset-of", "windw(4)"), 2),
        (("missing.pat",), 2),
        (("causal", "--no-such-option"), 2),
        ((), 2),
    ],
)
def test_check_has_an_exit_status_for_ci(arguments: tuple[str, ...], status: int) -> None:
    assert run("check", *arguments).exit_code == status
    if status < 2:
        result = run("check", *arguments, "--json")
        assert result.exit_code == status
        assert all(entry["proved"] for entry in json.loads(result.stdout)) == (status == 0)


def test_check_tells_the_witness_in_words() -> None:
    shown = " ".join(run("check", "layers(causal + window(3))", "--causal").stdout.split())
    assert "refuted no query reads a key after it" in shown
    assert "layer 1 of every 2: query 0 reads key 1, which comes after it, at n = 2" in shown
    (entry,) = json.loads(run("check", "window(3)", "--causal", "--json").stdout)
    (verdict,) = entry["verdicts"]
    assert verdict["witness"] == {"n": 2, "q": 0, "k": 1}
    assert len(json.loads(run("check", "causal", "--json").stdout)[0]["verdicts"]) == 3


ASSERTS = """\
pattern near = causal & window(8)
pattern strided = causal & (window(64) | stride(64))

assert causal(near); assert hops(strided) <= 2
    assert hops(near) <= 3 at 64  # it is 9
assert near <= strided | near
"""


@pytest.fixture
def asserted(tmp_path: Path) -> Path:
    path = tmp_path / "asserted.pat"
    path.write_text(ASSERTS)
    return path


def test_check_decides_the_asserts_of_a_file(asserted: Path) -> None:
    result = run("check", str(asserted), COLUMNS="200")
    assert result.exit_code == 1
    assert result.stderr == ""
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0] == "near = causal & window(8)"
    assert sum(line.startswith("proved ") for line in lines) == 3
    assert re.search(r"^refuted +the hop diameter is at most 3, at n = 64 +9 *$", result.stdout, re.MULTILINE)
    at = lines.index(f" --> {asserted}:5:5")
    assert lines[at - 1].startswith("error[refuted]: the hop diameter is at most 3, at n = 64: ")
    assert lines[at + 1 :] == [
        "  |",
        "5 |     assert hops(near) <= 3 at 64  # it is 9",
        "  |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^",
    ]
    asserted.write_text(ASSERTS.replace("<= 3 at", "<= 9 at"))
    result = run("check", str(asserted))
    assert result.exit_code == 0
    assert "error" not in result.stdout
    assert run("check", "-", stdin=ASSERTS).exit_code == 1


def test_check_tells_asserts_that_are_open(asserted: Path) -> None:
    asserted.write_text("causal & topk(s, 4) & window(9)\nassert hops <= 8 at 64")
    result = run("check", str(asserted))
    assert result.exit_code == 1
    assert "error[unknown]: " in result.stdout
    assert "2 | assert hops <= 8 at 64" in result.stdout


def test_check_with_asserts_as_json(asserted: Path) -> None:
    near, strided = json.loads(run("check", str(asserted), "--json").stdout)
    assert [near[key] for key in ("name", "expression", "proved")] == ["near", "causal & window(8)", False]
    assert strided["proved"]
    causal, limit, subset = near["verdicts"]
    assert causal["assert"] == "assert causal(near)"
    assert [causal[key] for key in ("guarantee", "n", "line", "column", "status")] == ["causal", None, 4, 1, "proved"]
    assert [limit[key] for key in ("operator", "limit", "n", "line", "column", "value")] == ["<=", 3, 64, 5, 5, 9]
    assert limit["status"] == "refuted"
    assert limit["witness"]["n"] == 64
    assert limit["certificate"]["kind"]
    assert (subset["guarantee"], subset["other"]) == ("subset", "causal & (window(64) | stride(64)) | causal & window(8)")
    (entry,) = json.loads(run("check", "causal & window(4, dilation=2)", "--max-hops", "3", "--n", "64", "--json").stdout)
    (limit,) = entry["verdicts"]
    assert limit["value"] == "infinity"
    assert "assert" not in limit


def test_check_of_one_pattern_takes_the_asserts_that_name_it(asserted: Path) -> None:
    (entry,) = json.loads(run("check", str(asserted), "-p", "strided", "--self-loops", "--n", "9", "--json").stdout)[:1]
    found = {(v["guarantee"], v["n"]) for v in entry["verdicts"]}
    assert found == {("hops", None), ("self_loops", 9)}
    for name in ("near_", "mistral"):
        asserted.write_text(f"{ASSERTS}assert causal(mistral)\n")
        result = run("check", str(asserted), "-p", name)
        assert result.exit_code == 2
        assert f"has no pattern '{name}'" in result.stderr


def test_check_says_where_there_are_no_asserts(patterns: Path) -> None:
    assert f"{patterns} has no asserts\n" in run("check", str(patterns), COLUMNS="300").stdout
    assert "has no asserts about 'near'" in run("check", str(patterns), "-p", "near", COLUMNS="300").stdout
    assert "asserts" not in run("check", "causal").stdout
    assert "asserts" not in run("check", "presets").stdout
    assert len(json.loads(run("check", str(patterns), "--json").stdout)) == 2


def test_errors_in_asserts_have_a_caret(asserted: Path) -> None:
    asserted.write_text(ASSERTS + "assert hop(near) <= 2\n")
    for command in ("check", "explain", "show"):
        result = run(command, str(asserted))
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "asserted.pat:7:8" in result.stderr
        assert "hint: did you mean 'hops'?" in result.stderr


def test_files_hold_several_patterns(patterns: Path) -> None:
    entries = json.loads(run("check", str(patterns), "--causal", "--json").stdout)
    assert [(e["name"], e["proved"]) for e in entries] == [("near", True), ("far", False)]
    assert run("check", str(patterns), "--causal", "--pattern", "near").exit_code == 0
    shown = run("show", str(patterns), "--n", "4").stdout
    assert "near" in shown
    assert "far" in shown
    result = run("emit", str(patterns))
    assert result.exit_code == 2
    assert "several-patterns" in result.stderr or "no-emitter" in result.stderr
    result = run("check", str(patterns), "-p", "near_")
    assert result.exit_code == 2
    assert "did you mean 'near'?" in result.stderr


def test_files_may_end_with_an_expression(tmp_path: Path) -> None:
    path = tmp_path / "one.pat"
    path.write_text("let w = 4\nwindow(w)\n")
    (entry,) = json.loads(run("check", str(path), "--causal", "--json").stdout)
    assert entry["expression"] == "window(4)"
    path.write_text("let w = 4\n")
    assert "no-expression" in run("check", str(path)).stderr
    path.write_bytes(b"\xff")
    assert "not UTF-8" in run("check", str(path)).stderr


def test_standard_input() -> None:
    result = run("check", "-", "--json", stdin="pattern a = causal\nwindow(2)\n")
    assert [e["expression"] for e in json.loads(result.stdout)] == ["causal", "window(2)"]
    assert "<stdin>:2:1" in run("explain", "-", stdin="pattern a = causal\nwindw(2)\n").stderr


def test_errors_have_a_caret_and_no_traceback() -> None:
    result = run("explain", "causal & windw(4)")
    assert result.exit_code == 2
    assert result.stdout == ""
    with pytest.raises(pc.PatternError) as error:
        pc.parse("causal & windw(4)")
    assert result.stderr == f"{error.value}\n"
    result = run("explain", "causal & windw(4)", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] | {"line": 1} == {
        "code": "unknown-name",
        "message": "unknown pattern 'windw'",
        "line": 1,
        "column": 10,
        "hint": "did you mean 'window'?",
    }


@pytest.mark.parametrize("value", ["0", "2k", "-4", "4.5", "3G", "9999999999", ""])
def test_lengths_are_checked(value: str) -> None:
    result = run("show", "causal", f"--n={value}")
    assert result.exit_code == 2
    assert "such as 4096, 4K or 1M" in result.stderr


def test_show() -> None:
    shown = run("show", "causal & (window(2) | sinks(1))", "--n", "4").stdout
    assert shown.splitlines()[1:5] == ["0 A · · ·", "1 A A · ·", "2 B A A ·", "3 B · A A"]
    assert "\x1b" not in shown
    tiled = run("show", "causal", "--n", "8", "--tiles", "4").stdout
    assert "tiles of 4: 1 full, 2 partial, 1 empty of 4" in tiled
    assert run("show", "gemma3", "--layer", "5", "--n", "8").exit_code == 0


def test_show_writes_svg(tmp_path: Path) -> None:
    target = tmp_path / "mask.svg"
    assert run("show", "flagship", "--n", "32", "--svg", str(target)).exit_code == 0
    assert ElementTree.fromstring(target.read_text("utf-8")).tag.endswith("svg")
    result = run("show", "causal", "--svg", str(tmp_path / "none" / "mask.svg"))
    assert result.exit_code == 2
    assert "cannot write" in result.stderr


def test_show_json_is_the_mask() -> None:
    (shown,) = json.loads(run("show", "causal & (window(2) | random(2) | topk(s, 1))", "--n", "12", "--json").stdout)
    static = pc.parse("causal & (window(2) | random(2))").mask(12)
    for q, row in enumerate(shown["rows"]):
        held = [k for first, last in row["held"] for k in range(first, last + 1)]
        possible = [k for first, last in row["possible"] for k in range(first, last + 1)]
        assert held == static[q].nonzero()[0].tolist()
        assert sorted(held + possible) == list(range(q + 1))


def test_explain() -> None:
    shown = run("explain", "causal & (window(4) | stride(8))", "--n", "1K", "--head-dim", "64").stdout
    for wanted in ("(q - k) % 8 == 0", "cost at n = 1,024", "for a head of 64"):
        assert wanted in shown
    (entry,) = json.loads(run("explain", "packed", "--json").stdout)
    assert entry["sections"][0]["inputs"][0]["name"] == "ids"


def test_explain_and_emit_use_the_compiler_where_it_is_there() -> None:
    pytest.importorskip("patternc.runtime.compile")
    assert "plan" in run("explain", "gemma3", "--plan").stdout
    result = run("emit", "causal & window(64)")
    assert result.exit_code == 0
    compile(result.stdout, "emitted", "exec")
    assert json.loads(run("emit", "causal", "--json").stdout)["source"]
    assert run("emit", "causal", "--backend", "no_such").exit_code == 2
    assert run("emit", "gemma3").exit_code == 2
    assert run("emit", "gemma3", "--layer", "5").exit_code == 0


def test_explain_tells_the_plans_that_were_chosen_and_rejected() -> None:
    arguments = ("explain", "causal & (window(256) | stride(256))", "--plan", "--backend", "torch")
    shown = run(*arguments, COLUMNS="160").stdout
    assert shown == run(*arguments, COLUMNS="160").stdout
    for wanted in ("chosen ", "rejected ", "queries and keys a multiple of 256 apart", "taken: a pass of its own"):
        assert wanted in shown
    (entry,) = json.loads(run(*arguments, "--json").stdout)
    (found,) = entry["choices"]
    assert (found["backend"], found["where"]) == ("torch", "")
    assert [one["chosen"] for one in found["candidates"]] == [True] + [False] * (len(found["candidates"]) - 1)
    assert shown.endswith(f"plan chosen\n{entry['plan'][0]}\n")


def test_plans_are_those_of_distinct_layers() -> None:
    shown = run("explain", "gemma3", "--plan", COLUMNS="160").stdout
    assert shown.count("plan chosen") == 2
    assert "plans of layers 0-4 of every 6: gluon backend, cuda 9.x" in shown
    assert "plans of layer 5 of every 6: gluon backend, cuda 9.x" in shown
    (entry,) = json.loads(run("explain", "gemma3", "--plan", "--layer", "5", "--json").stdout)
    assert entry["expression"] == "causal"
    assert [one["where"] for one in entry["choices"]] == [""]
    assert "choices" not in json.loads(run("explain", "gemma3", "--json").stdout)[0]


GATED = "causal & gated(far=stride(4), near=window(3))"


def test_branches_are_explained_and_planned_apart() -> None:
    shown = run("explain", GATED, "--plan", COLUMNS="160").stdout
    assert "branch far: causal & stride(4)" in shown
    assert "plans of branch near: gluon backend, cuda 9.x" in shown
    assert json.loads(run("explain", GATED, "--json").stdout)[0]["branches"] == ["far", "near"]
    assert "B window(3)" in run("show", GATED, "--n", "8").stdout


@pytest.mark.parametrize("command", ["explain", "show", "emit", "demo"])
def test_one_branch(command: str) -> None:
    assert "causal & window(3)" in run(command, GATED, "--branch", "near", COLUMNS="160").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("emit", GATED), "no branch was chosen"),
        (("demo", GATED), "no branch was chosen"),
        (("bench", GATED, "--n", "64", "--device", "cpu"), "no branch was chosen"),
        (("show", GATED, "--branch", "naer"), "did you mean 'near'?"),
        (("show", "causal", "--branch", "near"), "gated(...) makes branches"),
    ],
)
def test_a_branch_that_is_missing(arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "measuring" not in result.stderr


@pytest.mark.parametrize(
    ("text", "head_dim", "wanted"),
    [("causal", 128, "gluon"), ("causal", 20, "triton"), ("causal & random(3)", 128, "triton"), ("causal", 512, "torch")],
)
def test_plans_are_those_of_what_would_run(text: str, head_dim: int, wanted: str) -> None:
    """On a Hopper GPU, whatever is missing here."""
    from patternc.backend import Request
    from patternc.runtime.compile import plan_for

    (entry,) = json.loads(run("explain", text, "--plan", "--head-dim", str(head_dim), "--json").stdout)
    assert [one["backend"] for one in entry["choices"]] == [wanted]
    assert entry["plan"] == [str(plan_for(pc.parse(text), None, wanted, Request("cuda", "bfloat16", head_dim, head_dim, 0)))]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--measure",), "usage"),
        (("--backend", "torch"), "usage"),
        (("--plan", "--backend", "tritn"), "value"),
        (("--plan", "--backend", "triton", "--head-dim", "512"), "no-plan"),
        (("--plan", "--backend", "gluon", "--head-dim", "20"), "no-plan"),
    ],
)
def test_options_of_plans_are_checked(arguments: tuple[str, ...], code: str) -> None:
    result = run("explain", "causal", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error[{code}]: ")
    assert json.loads(run("explain", "causal", *arguments, "--json").stdout)["error"]["code"] == code


def test_a_backend_may_have_no_plan() -> None:
    reason = "it copies tiles of keys, and this pattern picks keys one by one"
    result = run("explain", "causal & random(3)", "--plan", "--backend", "gluon")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error[no-plan]: the gluon backend has no plan for this: {reason}")
    result = run("emit", "causal & random(3)", "--backend", "gluon")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error[value]: the gluon backend cannot run this pattern: {reason}")
    assert "Sparse attention, gluon backend: causal" in run("emit", "causal", "--backend", "gluon").stdout


def test_measuring_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("explain", "causal", "--plan", "--measure")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error[no-gpu]: --measure needs a CUDA device: ")
    monkeypatch.setitem(sys.modules, "patternc.runtime.bench", None)
    result = run("explain", "causal", "--plan", "--measure", "--json")
    assert result.exit_code == 2
    assert "not available here" in json.loads(result.stdout)["error"]["message"]


def test_missing_parts_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "patternc.runtime.compile", None)
    monkeypatch.setitem(sys.modules, "patternc.runtime.demo", None)
    for arguments in (("emit", "causal"), ("explain", "causal", "--plan"), ("demo",)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "is not available here" in result.stderr


def test_presets() -> None:
    assert "bigbird " in run("presets").stdout
    entries = json.loads(run("presets", "--json").stdout)
    assert {e["name"] for e in entries} == set(pc.presets())
    assert all(pc.parse(e["expression"]).equivalent(e["name"]) for e in entries if not e["inputs"])


@pytest.mark.parametrize("columns", ["20", "45", "200"])
@pytest.mark.parametrize("command", ["explain", "check", "show", "check --max-hops 2"])
def test_narrow_terminals(command: str, columns: str) -> None:
    result = run(*command.split(), "flagship", COLUMNS=columns)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= int(columns)


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE")}
    return subprocess.run(arguments, capture_output=True, text=True, env=env | environment, check=False, timeout=60)


TORCH_FREE = """
import sys
from patternc.cli import main
for arguments in {commands!r}:
    try:
        main(arguments, prog_name="patternc")
    except SystemExit as error:
        assert error.code in (0, None), (arguments, error.code)
assert "torch" not in sys.modules, "torch was imported"
"""


def test_no_command_but_demo_imports_torch() -> None:
    commands = [["explain", "flagship"], ["show", "flagship"], ["check", "flagship"], ["presets"]]
    try:
        import patternc.runtime.compile  # noqa: F401
    except ImportError:
        pass
    else:
        commands += [["emit", "mistral"], ["explain", "mistral", "--plan"]]
    result = process(sys.executable, "-c", TORCH_FREE.format(commands=commands))
    assert result.returncode == 0, result.stderr


def test_piped_output_has_no_colour_and_a_terminal_may() -> None:
    command = (sys.executable, "-m", "patternc.cli", "check", "causal")
    assert "\x1b[" not in process(*command).stdout
    assert "\x1b[" in process(*command, FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "\x1b[3" not in process(*command, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm-256color").stdout
    wrong = process(sys.executable, "-m", "patternc.cli", "check", "windw(4)")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    assert "^^^^^" in wrong.stderr


WORDS = st.sampled_from(
    ["causal", "window(3)", "stride", "~", "&", "|", "(", ")", "4", "2k", "topk(s, 2)", "heads(", "+", "é", "[", "\n"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=6).map(" ".join), st.sampled_from(["check", "explain", "show"]))
def test_any_text_ends_in_a_result_or_an_error(text: str, command: str) -> None:
    arguments = [command, "--n", "16", "--", text] if command != "check" else [command, "--", text]
    result = run(*arguments)
    assert result.exit_code in (0, 1, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)
