"""Measuring on a CPU at tiny n: the command, the masks of the peers, the harness and what is rendered from its results."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

import patternc as pc
from patternc.cli import main

torch = pytest.importorskip("torch")

from patternc.runtime import bench, peers  # noqa: E402
from patternc.runtime.demo import random_inputs  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PEERS = "sdpa-mask,sdpa-causal,sdpa-cudnn,flash-attn,flex-flash"
TINY = ("--device", "cpu", "--n", "48", "--heads", "2", "--head-dim", "16", "--peers", PEERS)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that calls and takes a millisecond."""

    def timer(call: bench.Call) -> float:
        call()
        return 1.0

    monkeypatch.setattr(bench, "timer_for", lambda device: timer)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from imported("gpu", monkeypatch)


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from imported("render", monkeypatch)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "bench"))
    yield import_module(name)
    for module in (name, "patterns"):
        sys.modules.pop(module, None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments], prog_name="patternc")


def by_name(result: dict[str, object]) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in result["peers"]}  # type: ignore[attr-defined]


def test_the_table() -> None:
    result = run("causal & window(8)", *TINY)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())  # a long name of a processor wraps its line
    for wanted in ("causal & window(8)", "float32, batch 1", "n = 48", "forward ms", "patternc", "sdpa-mask", "floor"):
        assert wanted in shown
    assert "sdpa-causal: the pattern is not exactly causal" in result.stdout
    for peer in ("sdpa-cudnn", "flash-attn", "flex-flash"):
        assert f"{peer}: needs a GPU" in result.stdout
    assert "backward" not in result.stdout
    assert "n = 48: sdpa-mask" in result.stderr


def test_json_and_backward() -> None:
    result = run("causal", *TINY, "--n", "32,48", "--kv-heads", "1", "--backward", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["expression"] == "causal"
    assert found["dtype"] == "float32"
    assert found["torch"] == torch.__version__
    assert [one["n"] for one in found["results"]] == [32, 48]
    one = found["results"][1]
    assert one["pairs"] == 48 * 49 / 2
    assert one["floor_backward_ms"] > one["floor_forward_ms"] > 0
    rows = by_name(one)
    for name in ("patternc", "sdpa-mask", "sdpa-causal"):
        assert rows[name]["forward_ms"] == rows[name]["backward_ms"] == 1
        assert rows[name]["forward_ratio"] == 1
        assert rows[name]["difference"] < 1e-5  # type: ignore[operator]
    assert rows["patternc"]["forward_tflops"] == pytest.approx(4 * one["pairs"] * 16 * 2 / 1e9)
    assert rows["patternc"]["backward_tflops"] == pytest.approx(10 * one["pairs"] * 16 * 2 / 1e9)
    assert rows["flex-flash"]["forward_ms"] is None
    assert rows["flex-flash"]["note"] == "needs a GPU"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("causal", (True, (None, None))),
        ("causal & (window(8) | window(99))", (False, (98, 0))),
        ("where(0 <= q - k and q - k < 16)", (False, (15, 0))),
        ("causal & window(8, dilation=2)", None),
        ("causal & (window(8) | stride(4))", None),
        ("local(8)", None),
        ("causal & document(ids)", None),
    ],
)
def test_what_flash_attention_has_a_call_for(
    text: str, size: tuple[bool, tuple[int | None, int | None]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for its function, which records how it is called, on tensors of queries first."""
    seen = []

    def flash_attn_func(q, k, v, causal, window_size):  # type: ignore[no-untyped-def]
        seen.append((causal, window_size))
        return q, None

    monkeypatch.setattr(peers, "_check_gpu", lambda case: None)
    monkeypatch.setattr(peers, "import_module", lambda name: SimpleNamespace(flash_attn_func=flash_attn_func))
    q = torch.randn(1, 4, 40, 8)
    case = peers.Case(pc.parse(text), q, q[:, :2], q[:, :2], {"ids": torch.zeros(40, dtype=torch.int64)})
    if size is None:
        with pytest.raises(peers.Missing, match="neither causal nor a causal window"):
            peers.flash_attn(case)
    else:
        its = peers.flash_attn(case)
        assert its.attend(q, case.k, case.v).equal(q)
        assert (its.repeats, seen) == (2, [size])


def test_svg(tmp_path: Path) -> None:
    target = tmp_path / "times.svg"
    assert run("causal & window(8)", *TINY, "--backward", "--svg", str(target)).exit_code == 0
    text = " ".join("".join(t.itertext()) for t in ElementTree.fromstring(target.read_text("utf-8")).iter())
    for wanted in ("causal & window(8)", "forward, n = 48", "backward, n = 48", "1.000 ms", "not measured: needs a GPU"):
        assert wanted in text
    result = run("causal", *TINY, "--svg", str(tmp_path / "none" / "times.svg"))
    assert result.exit_code == 2
    assert "cannot write" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("causal", "--n", "4k"), "such as 4096, 4K or 1M"),
        (("causal", "--n", "64,"), "such as 4096, 4K or 1M"),
        (("causal", "--n", "0"), "such as 4096, 4K or 1M"),
        (("causal", "--dtype", "bfloat61"), "did you mean 'bfloat16'?"),
        (("causal", "--dtype", "int8"), "unknown dtype 'int8'; there are bfloat16"),
        (("causal", "--device", "gpu0"), "unknown device 'gpu0'"),
        (("causal", "--device", "meta"), "measured on cpu and cuda"),
        (("causal", "--peers", "felx"), "did you mean 'flex'?"),
        (("causal", "--heads", "3", "--kv-heads", "2"), "must be a multiple"),
        (("causal & windw(4)",), "did you mean 'window'?"),
    ],
)
def test_errors(arguments: tuple[str, ...], wanted: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert wanted in result.stderr
    assert "Traceback" not in result.output


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("causal", "--device", "cuda", "--json")
    assert result.exit_code == 2
    assert "sees no GPU" in json.loads(result.stdout)["error"]["message"]


def test_tensors_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*shape: object, **options: object) -> object:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(bench, "random_inputs", full)
    result = run("causal", *TINY)
    assert result.exit_code == 2
    assert "do not fit into the memory of cpu: RuntimeError: not enough memory" in result.stderr


def test_a_pattern_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: peers.Case) -> peers.Ready:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(bench, "patternc_itself", broken)
    result = run("causal", *TINY)
    assert result.exit_code == 2
    assert "no-run" in result.stderr
    assert "no such kernel" in result.stderr


def test_large_masks_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.MASK_BYTES, "cpu", 1000)
    rows = by_name(json.loads(run("causal & window(8)", *TINY, "--json").stdout)["results"][0])
    assert rows["patternc"]["forward_ms"] == 1
    assert rows["sdpa-mask"]["forward_ms"] is None
    assert "the dense mask would take" in str(rows["sdpa-mask"]["note"])


def test_a_wrong_peer_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.PEERS, "sdpa-mask", lambda case: peers.Ready(lambda q, k, v: torch.full_like(q, torch.nan), 1))
    result = run("causal", *TINY, "--json")
    row = by_name(json.loads(result.stdout)["results"][0])["sdpa-mask"]
    assert row["difference"] == "nan"
    assert "differs from patternc's by nan" in str(row["note"])


def test_a_peer_that_fails_while_it_is_timed_is_noted() -> None:
    calls = 0

    def fails() -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("out of memory\nmore")

    found = {"good": bench._Found(), "bad": bench._Found()}
    times = bench.in_turns({"good": lambda: None, "bad": fails}, bench.timer_for("cpu"), found, "backward: ")
    assert times == {"good": 1.0}
    assert calls == 1
    assert found["bad"].notes == ["backward: RuntimeError: out of memory more"]


def test_slow_calls_have_one_turn() -> None:
    turns: list[str] = []

    def timer(call: bench.Call) -> float:
        return float(str(call()))

    def call(name: str, ms: float) -> bench.Call:
        def one() -> float:
            turns.append(name)
            return ms

        return one

    found = {"slow": bench._Found(), "fast": bench._Found()}
    assert bench.in_turns({"slow": call("slow", 2000), "fast": call("fast", 2)}, timer, found, "") == {"slow": 2000, "fast": 2}
    assert turns == ["slow", "fast", "fast", "fast"]


def test_turns_alternate() -> None:
    turns: list[str] = []
    calls = {name: (lambda name=name: turns.append(name)) for name in "ab"}
    bench.in_turns(calls, bench.timer_for("cpu"), {name: bench._Found() for name in "ab"}, "")
    assert "".join(turns) == "abbaab"


MASKED = [
    ("full", 2),
    ("none", 2),
    ("causal & (window(4) | random(2))", 3),
    ("causal & (window(9) | random(2, block=8))", 2),
    ("blocks(8, 1, 0) | random(2, block=8)", 2),
    ("causal & document(ids)", 2),
    ("~document(ids) | self", 1),
    ("layout(t, 8) - self", 2),
    ("layout(t, 8) & random(2, block=16)", 2),
    ("heads(2 * causal + window(3) + random(2))", 5),
    ("causal & (window(4) | topk(s, 3))", 2),
    ("causal & topk(s, 2, block=4)", 1),
]


@pytest.mark.parametrize(("text", "heads"), MASKED)
def test_the_mask_of_the_peers_is_the_pattern(text: str, heads: int) -> None:
    pattern, n = pc.parse(text), 44
    inputs = random_inputs(pattern, n, torch.Generator().manual_seed(0))
    mask = peers._mask(pattern, n, heads, inputs, CPU)
    dense = mask.dense(n, CPU).numpy()
    assert mask.pairs is not None
    for head in range(heads):
        expected = pattern.mask(n, head=head, **{name: t.numpy() for name, t in inputs.items()})
        np.testing.assert_array_equal(dense[head % len(dense)], expected)
        assert mask.pairs[head % len(dense)] == expected.sum()


def test_masks_that_cannot_be_listed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MAX_LISTED", 100)
    rows = by_name(json.loads(run("causal & topk(s, 4)", *TINY, "--json").stdout)["results"][0])
    assert rows["patternc"]["forward_ms"] == 1
    assert "no closed form" in str(rows["sdpa-mask"]["note"])


@pytest.mark.parametrize("text", ["packed", "bigbird", "heads(causal + topk(s, 2))", "layout(t, 16)", "none"])
def test_every_kind_of_pattern(text: str) -> None:
    result = run(text, *TINY, "--peers", "sdpa-mask", "--backward", "--json")
    assert result.exit_code == 0, result.output
    row = by_name(json.loads(result.stdout)["results"][0])["sdpa-mask"]
    assert row["difference"] < 1e-5  # type: ignore[operator]
    assert row["backward_ms"] == 1


@pytest.mark.timeout(600)
def test_flex_on_a_cpu_or_the_reason() -> None:
    result = run("causal & window(8)", *TINY, "--peers", "flex", "--json")
    row = by_name(json.loads(result.stdout)["results"][0])["flex"]
    assert row["note"] or (row["forward_ms"] == 1 and row["difference"] < 1e-5 and row["mask_ms"] > 0)  # type: ignore[operator]


def test_the_real_timer_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < bench._cpu_ms(lambda: sum(range(1000))) < 1000


HARNESS = ("--device", "cpu", "--dtype", "float32", "--heads", "2", "--kv-heads", "1", "--head-dim", "16", "--n", "24,32")


def test_the_harness_writes_rows(harness: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "times.json"
    harness.OVERHEAD_LENGTHS, harness.OVERHEAD_CALLS = (16,), 2
    chosen = ("--patterns", "causal,fixed(256; 8)", "--peers", "FLASH", "--commit", "abc")
    harness.main([*HARNESS, *chosen, "--backward", "--graph-overhead", "--out", str(out)])
    report = json.loads(out.read_text("utf-8"))
    assert report["commit"] == "abc"
    assert report["ceilings"]["matmul_tflops"] > 0
    assert [(row["name"], row["n"]) for row in report["rows"]] == [
        ("causal", 24), ("fixed(256, 8)", 24), ("causal", 32), ("fixed(256, 8)", 32),
    ]  # fmt: skip
    assert by_name(report["rows"][0])["patternc"]["backward_ms"] == 1
    assert by_name(report["rows"][0])["flex-flash"]["note"] == "needs a GPU"
    (small,) = report["overhead"]
    assert small["patternc"]["wall_us"] >= small["patternc"]["launch_us"] > 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed[2:] == report["rows"]
    assert list(tmp_path.iterdir()) == [out]


def test_the_harness_records_errors_and_the_budget(
    harness: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "times.json"
    monkeypatch.setattr(bench, "measure", lambda *_: 1 / 0)
    harness.main([*HARNESS, "--patterns", "causal", "--peers", "", "--out", str(out)])
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert [row["error"] for row in rows] == ["ZeroDivisionError: division by zero"] * 2
    harness.main([*HARNESS, "--patterns", "causal", "--budget", "-1", "--out", str(out)])
    assert all("the budget of -1 s" in row["skipped"] for row in json.loads(out.read_text("utf-8"))["rows"])


@pytest.mark.parametrize("wrong", [("--patterns", "causel"), ("--peers", "FAST"), ("--dtype", "int8"), ("--n", "x")])
def test_the_harness_refuses(harness: ModuleType, wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        harness.main([*HARNESS, *wrong])
    assert stopped.value.code == 2


def peer(name: str, forward: float | None, backward: float | None = None, note: str = "") -> dict[str, object]:
    return {"name": name, "forward_ms": forward, "backward_ms": backward, "note": note}


REPORT = {
    "device": "a GPU", "torch": "2.11", "triton": "3.6", "date": "2026-01-01", "dtype": "bfloat16", "batch": 1, "heads": 16,
    "kv_heads": 4, "head_dim": 128, "ceilings": {"matmul_tflops": 793.0, "copy_tb_per_s": 4.27},
    "rows": [
        {"name": "a", "pattern": "causal", "n": 1024, "floor_forward_ms": 0.5, "floor_backward_ms": 1.0,
         "peers": [peer("patternc", 1.0, 4.0), peer("flex", 2.0, 2.0), peer("flex-flash", 0.8, None, "backward: no kernel")]},
        {"name": "b", "pattern": "window(2) | sinks(4)", "n": 1024, "floor_forward_ms": 0.5, "floor_backward_ms": 1.0,
         "peers": [peer("patternc", 2.0, 2.0), peer("flex", 3.0, 3.0), peer("flex-flash", None, None, "OutOfMemory")]},
        {"name": "c", "pattern": "stride(4)", "n": 1024, "skipped": "the budget of 9 s was spent"},
    ],
}  # fmt: skip


def test_the_rendered_table(render: ModuleType, tmp_path: Path) -> None:
    results, readme = tmp_path / "times.json", tmp_path / "README.md"
    results.write_text(json.dumps(REPORT), "utf-8")
    readme.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n", "utf-8")
    for _ in range(2):
        render.main([str(results), "--readme", str(readme), "--charts", str(tmp_path)])
    text = readme.read_text("utf-8")
    assert text.startswith("before\n<!-- bench:begin -->\nForward pass, n = 1,024.")
    assert text.endswith("<!-- bench:end -->\nafter\n")
    assert "old" not in text
    assert "a GPU, bfloat16, batch 1, 16 heads on 4, head_dim 128, torch 2.11" in text
    assert "| pattern | patternc | Flex FLASH | Flex TRITON | ratio | times the floor |" in text
    assert "| `causal` | 1.000 | 0.800 | 2.000 | 0.80 | 2.0 |" in text
    assert "| `window(2) \\| sinks(4)` | 2.000 | - | 3.000 | 1.50 | 4.0 |" in text
    assert "| `stride(4)` | - | - | - | - | - |" in text
    assert "Flex FLASH was not measured (OutOfMemory): `window(2) | sinks(4)`" in text
    assert "Not measured: the budget of 9 s was spent: `stride(4)`" in text
    backward = text.split("Backward pass")[1]
    assert "| `causal` | 4.000 | 2.000 | 0.50 | 4.0 |" in backward
    assert "Flex FLASH was not measured (no kernel): `causal`" in backward
    for way in ("forward", "backward"):
        assert ElementTree.fromstring((tmp_path / f"{way}.svg").read_text("utf-8")).tag.endswith("svg")


def test_markers_are_needed(render: ModuleType) -> None:
    with pytest.raises(SystemExit, match="bench:begin"):
        render.replaced("no markers", "text")


def test_the_readme_shows_committed_results(render: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    reports = [json.loads(path.read_text("utf-8")) for path in (ROOT / "tests" / "bench" / "results").glob("*.json")]
    shown = [report for report in reports if "ceilings" in report and render.section(report) in readme]
    assert shown, "run tests/bench/render.py"
    for way in render.ways(shown[0]):
        chart = (ROOT / "tests" / "bench" / "results" / f"{way}.svg").read_text("utf-8")
        assert chart == render.chart(shown[0], way)


CPU_ROW = {
    "pattern": "window(2) | sinks(4)", "n": 2048, "density": 0.0312, "patternc_ms": 12.345, "sdpa_dense_mask_ms": 1234.5,
    "flex_ms": 6.5, "patternc_train_ms": 100.4, "sdpa_dense_mask_train_ms": 9.0, "ratio_flex": 0.5265, "ratio_sdpa": 100.0,
    "ratio_sdpa_train": 0.0896,
}  # fmt: skip
WITHOUT_FLEX = {key: value for key, value in CPU_ROW.items() if key != "flex_ms"} | {"ratio_flex": None}
CPU_REPORT = {
    "threads": 2, "processor": "a CPU", "heads": 4, "dim": 64, "torch": "2.13", "date": "2026-01-01", "commit": "abc",
    "rows": [
        CPU_ROW | {"n": 1024, "patternc_ms": 999.0},
        CPU_ROW,
        WITHOUT_FLEX | {"pattern": "causal", "commit": "def", "note": "alone"},
    ],
}  # fmt: skip


def test_the_rendered_table_of_a_cpu(render: ModuleType, tmp_path: Path) -> None:
    results, readme = tmp_path / "times.json", tmp_path / "README.md"
    results.write_text(json.dumps(CPU_REPORT), "utf-8")
    readme.write_text("before\n<!-- cpu:begin -->\nold\n<!-- cpu:end -->\nafter\n", "utf-8")
    for _ in range(2):
        render.main([str(results), "--readme", str(readme), "--charts", str(tmp_path)])
    text = readme.read_text("utf-8")
    assert "n = 2,048. a CPU, 2 threads, float32, batch 1, 4 heads, head_dim 64, torch 2.13, 2026-01-01." in text
    assert "| `window(2) \\| sinks(4)` | 3.1% | 12.3 | 6.5 | 1,234 | 0.526 | 100 | 100 | 9 | 0.0896 |" in text
    assert "| `causal` | 3.1% | 12.3 | - | 1,234 | - | 100 | 100 | 9 | 0.0896 |" in text
    assert "Measured at commit abc; `causal` at def (alone).\n<!-- cpu:end -->\nafter" in text
    assert "999" not in text
    assert "old" not in text
    assert not list(tmp_path.glob("*.svg"))


def test_the_readme_shows_committed_results_of_a_cpu(render: ModuleType) -> None:
    report = json.loads((ROOT / "tests" / "bench" / "results" / "cpu_2cores.json").read_text("utf-8"))
    assert render.cpu_section(report) in (ROOT / "README.md").read_text("utf-8"), "run tests/bench/render.py"
