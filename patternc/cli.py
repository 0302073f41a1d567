"""The command line: `patternc explain | show | report | check | emit | demo | bench | presets`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

import patternc
from patternc.diagnostics import Diagnostic, PatternError, suggest
from patternc.language.parser import parse_program
from patternc.language.resolve import presets_text
from patternc.pattern import MAX_N, Pattern, parse, parse_asserts, parse_file, presets
from patternc.relation import BudgetExceeded

if TYPE_CHECKING:
    from patternc.report.choices import Choices
    from patternc.runtime.demo import Demo

R = TypeVar("R")

NOT_PROVED, USAGE = 1, 2
EXPRESSION = "<pattern>"

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20}


class Length(click.ParamType[int]):
    """A sequence length: 4096, 4_096, 4K, 1M."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]+(?:_[0-9]+)*)([KM]?)", value)
        number = int(match[1].replace("_", "")) * _SIZES[match[2]] if match else 0
        if not 1 <= number <= MAX_N:
            self.fail(f"{value!r} is not a length from 1 to {MAX_N:,}, such as 4096, 4K or 1M", param, ctx)
        return number


class Lengths(click.ParamType[tuple[int, ...]]):
    """Sequence lengths: 4096 or 4K,32K."""

    name = "n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(LENGTH.convert(part.strip(), param, ctx) for part in value.split(",")))


LENGTH, LENGTHS = Length(), Lengths()


class _Failure(Exception):
    """An error that ends the command with a message and an exit status."""

    def __init__(self, code: str, message: str, hint: str | None = None):
        super().__init__(message)
        self.diagnostic = Diagnostic(code, message, None, hint)


def _console(*, stderr: bool = False, width: int | None = None) -> Console:
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _reports_errors(command: Callable[..., R]) -> Callable[..., R]:
    """Errors of patterns become a diagnostic on standard error (or JSON) and exit status 2."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> R:
        try:
            return command(*args, **kwargs)
        except PatternError as error:
            diagnostic = error.diagnostic
        except _Failure as error:
            diagnostic = error.diagnostic
        except BudgetExceeded as error:
            diagnostic = Diagnostic("too-complex", str(error), None, "use fewer and smaller moduli, or a smaller n")
        except ValueError as error:
            diagnostic = Diagnostic("value", str(error))
        if kwargs.get("as_json"):
            _print_json({"error": diagnostic.to_json()})
        else:
            _console(stderr=True).print(_coloured(diagnostic), soft_wrap=True)
        raise SystemExit(USAGE)

    return wrapped


def _coloured(diagnostic: Diagnostic) -> Text:
    text = Text(str(diagnostic))
    text.highlight_regex(r"^error\[[^\]]*\]", "bold red")
    text.highlight_regex(r"(?m)^ *\| *(\^+)$", "red")
    text.highlight_regex(r"(?m)^ *--> .*$", "dim")
    text.highlight_regex(r"(?m)^hint:", "bold cyan")
    return text


def _text(source: str) -> tuple[str, str]:
    """The text that an argument stands for, and its name: of a file, of standard input, or of no file at all."""
    if source == "-":
        return sys.stdin.read(), "<stdin>"
    if not source.endswith(".pat"):
        return source, EXPRESSION
    try:
        return Path(source).read_text("utf-8"), source
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise _Failure("no-file", f"cannot read '{source}': {reason}") from None


def _load(source: str, chosen: str | None = None, branch: str | None = None) -> list[Pattern]:
    """The patterns that an argument names, or a branch of each: one, or all of a file."""
    found = _patterns(*_text(source), chosen)
    return found if branch is None else [pattern.branch(branch) for pattern in found]


def _patterns(text: str, name: str, chosen: str | None) -> list[Pattern]:
    if name != EXPRESSION:
        found = _of_file(text, name)
    else:
        preset = text if text.isidentifier() and text in presets() else None
        found = [Pattern(parse(text).expression, preset)]
    if chosen is None:
        return found
    names = [pattern.name for pattern in found if pattern.name]
    if chosen not in names:
        hint = suggest(chosen, names) or (f"there are {', '.join(names)}" if names else "nothing there has a name")
        where = text if name == EXPRESSION else name
        raise _Failure("unknown-name", f"'{where}' has no pattern '{chosen}'", hint)
    return [pattern for pattern in found if pattern.name == chosen]


def _of_file(text: str, name: str) -> list[Pattern]:
    found = list(parse_file(text, name).values())
    if parse_program(text, name).body is not None:
        found.append(parse(text, name))
    return found or [parse(text, name)]


def _load_one(source: str, chosen: str | None, branch: str | None = None) -> Pattern:
    found = _load(source, chosen, branch)
    if len(found) > 1:
        names = ", ".join(pattern.name or "the expression" for pattern in found)
        raise _Failure("several-patterns", f"'{source}' holds several patterns: {names}", "choose one with --pattern NAME")
    return found[0]


_source = click.argument("source", metavar="PATTERN")
_chosen = click.option("-p", "--pattern", "chosen", metavar="NAME", help="Which pattern of a file to take.")
_branch = click.option("--branch", metavar="NAME", help="Which of the attentions that gated(...) joins.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_head = click.option("--head", type=click.IntRange(0), default=0, show_default=True, help="Which query head.")
_layer = click.option("--layer", type=click.IntRange(0), default=0, show_default=True, help="Which layer, from the bottom.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(patternc.__version__, "-V", "--version", prog_name="patternc", message="%(prog)s %(version)s")
def main() -> None:
    """A language and a compiler for sparse attention: write which keys a query may read.

    \b
    Examples:
      patternc explain "causal & (window(4096) | sinks(4))"
      patternc show "causal & (window(4) | stride(8))" --n 32
      patternc check mistral --causal --subset-of causal
      patternc emit streaming_llm -o kernel.py

    Sizes are written 4096, 4_096, 4K or 1M. Exit status: 0; 1 where a checked guarantee is not proved; 2 for errors.
    """


@main.command(short_help="What a pattern means, and what it costs.")
@_source
@_chosen
@_branch
@click.option("--n", type=LENGTH, help="Sequence length of the costs (4096 by default) and of --measure (32K).")
@click.option("--head-dim", type=click.IntRange(1), default=128, show_default=True, help="Head dimension of flops and plans.")
@click.option("--layer", type=click.IntRange(0), help="Only this layer, from the bottom.")
@click.option("--plan", is_flag=True, help="Also print the plans of the kernel that were chosen and rejected, with costs.")
@click.option("--backend", metavar="NAME", help="Whose plans; by default of what would run it, on a Hopper GPU.")
@click.option("--measure", is_flag=True, help="Also time the plans. Needs a CUDA device.")
@_json
@_reports_errors
def explain(
    source: str,
    chosen: str | None,
    branch: str | None,
    n: int | None,
    head_dim: int,
    layer: int | None,
    plan: bool,
    backend: str | None,
    measure: bool,
    as_json: bool,
) -> None:
    """Say what a pattern means in words and equations, what it costs, and what is proved about it.

    PATTERN is an expression, the name of a preset, a .pat file, or - for standard input.

    \b
    Examples:
      patternc explain "causal & window(4096)" --n 128K
      patternc explain gemma3 --json
      patternc explain "causal & (window(256) | stride(256))" --plan
      echo "causal & stride(64)" | patternc explain - --plan
    """
    from patternc.report.explain import explain as explained

    if (measure or backend) and not plan:
        raise _Failure("usage", f"--{'measure' if measure else 'backend'} is about plans", "add --plan")
    found = _load(source, chosen, branch)
    if layer is not None:
        found = [pattern.layer(layer) for pattern in found]
    ask = _planner(backend, head_dim, n, measure) if plan else None
    results = [explained(pattern, n=n or 4096, head_dim=head_dim) for pattern in found]
    plans = [_plans(pattern, ask) if ask else [] for pattern in found]
    if as_json:
        _print_json([{**result.to_json(), **_plans_json(mine)} for result, mine in zip(results, plans, strict=True)])
        return
    console = _console()
    for i, (result, mine) in enumerate(zip(results, plans, strict=True)):
        if i:
            console.print()
        console.print(result.render())
        for where, choices in mine:
            console.print()
            console.print(choices.render(where))
            console.print(Text("\nplan chosen", "bold dim"))
            console.print(Text(str(choices.plan)), soft_wrap=True)


def _planner(backend: str | None, head_dim: int, n: int | None, measure: bool) -> Callable[[Pattern], Choices]:
    """What finds the plans of a pattern whose layers are alike: those of a backend, or of the one that would run it."""
    try:
        from patternc.backend import backend_named
        from patternc.report.choices import choices, measured
        from patternc.runtime.compile import DEFAULT_REQUEST, plan_for, usual
    except ImportError as error:
        raise _Failure("no-plan", f"the lowering is not available here: {error}") from None
    request = replace(DEFAULT_REQUEST, head_dim=head_dim, value_dim=head_dim)
    if measure:
        request = replace(request, generation=_generation())
        return lambda pattern: measured(pattern, backend or usual(pattern, None, request), n=n or 32_768, head_dim=head_dim)
    if backend is None:
        return lambda pattern: choices(pattern, usual(pattern, None, request), request)
    chosen = backend_named(backend)
    lacking = chosen.unsupported(DEFAULT_REQUEST)  # what this machine lacks does not matter here
    wrong = [reason for reason in chosen.unsupported(request) if reason not in lacking]

    def ask(pattern: Pattern) -> Choices:
        if reasons := wrong or chosen.refused(plan_for(pattern, None, chosen.name, request), request):
            raise _Failure("no-plan", f"the {chosen.name} backend has no plan for this: {', '.join(reasons)}")
        return choices(pattern, chosen.name, request)

    return ask


def _generation() -> int:
    """The generation of this machine's GPU, for a `Request`."""
    try:
        from patternc.runtime.bench import Setting
        from patternc.runtime.operator import generation_of
    except ImportError as error:
        hint = "pip install 'patternc[kernels]'" if error.name in ("torch", "triton") else None
        raise _Failure("no-runtime", f"measuring is not available here: {error}", hint) from None
    try:
        return generation_of(Setting("cuda").device)
    except ValueError as error:
        message = f"--measure needs a CUDA device: {error}"
        raise _Failure("no-gpu", message, "without --measure, the predicted costs are printed") from None


def _plans(pattern: Pattern, ask: Callable[[Pattern], Choices]) -> list[tuple[str, Choices]]:
    """The plans of every distinct layer or branch, and which layers have them."""
    from patternc.analysis.members import attentions

    return [(where, ask(one)) for one, where in attentions(pattern)]


def _plans_json(plans: list[tuple[str, Choices]]) -> dict[str, Any]:
    if not plans:
        return {}
    choices = [{"where": where, **found.to_json()} for where, found in plans]
    return {"plan": [str(found.plan) for _, found in plans], "choices": choices}


@main.command(short_help="Draw the mask, here or as an SVG file.")
@_source
@_chosen
@_branch
@click.option("--n", type=LENGTH, default=64, show_default=True, help="Sequence length.")
@click.option("--tiles", type=LENGTH, help="Draw the borders of tiles of this size, and count them.")
@click.option(
    "--reach",
    type=click.IntRange(0),
    metavar="L",
    help="Draw what L layers from --layer up reach, all heads together; up to n = 2,048.",
)
@_head
@_layer
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write an SVG file instead.")
@click.option("--width", type=click.IntRange(12), help="Columns to use; the terminal's by default.")
@_json
@_reports_errors
def show(
    source: str,
    chosen: str | None,
    branch: str | None,
    n: int,
    tiles: int | None,
    reach: int | None,
    head: int,
    layer: int,
    svg: Path | None,
    width: int | None,
    as_json: bool,
) -> None:
    """Draw the mask: queries run down, keys to the right; a colour (a letter, without colours) for each part.

    PATTERN is an expression, the name of a preset, a .pat file, or - for standard input. What runtime inputs or scores
    decide is drawn pale (in small letters). With --reach, a colour for the number of layers that a key is away.

    \b
    Examples:
      patternc show "causal & (window(4) | global([0]) | stride(8))" --n 32
      patternc show "causal & window(8)" --reach 4
      patternc show longformer --n 8K
      patternc show "causal & chunk(16)" --tiles 16
      patternc show flagship --n 16K --svg flagship.svg
    """
    from patternc.report.svg import mask_svg
    from patternc.report.text import mask_text

    if reach is not None and (tiles is not None or head):
        raise _Failure("usage", f"--{'tiles' if tiles is not None else 'head'} is about one mask, and --reach about several")
    found = _load_one(source, chosen, branch) if svg else None
    if found is not None and svg is not None:
        try:
            svg.write_text(mask_svg(found, n, head=head, layer=layer, reach=reach), "utf-8")
        except OSError as error:
            raise _Failure("no-file", f"cannot write '{svg}': {error.strerror}") from None
        if as_json:
            _print_json({"file": str(svg)})
        else:
            click.echo(f"wrote {svg}")
        return
    patterns = _load(source, chosen, branch)
    if as_json:
        _print_json([_mask_json(pattern, n, head, layer, reach) for pattern in patterns])
        return
    console = _console(width=width)
    colours = console.color_system is not None
    for i, pattern in enumerate(patterns):
        if i:
            console.print()
        if len(patterns) > 1:
            console.print(Text(pattern.name or str(pattern), "bold"))
        drawn = mask_text(pattern, n, head=head, layer=layer, reach=reach, width=console.width, colours=colours, tiles=tiles)
        console.print(drawn, soft_wrap=True)


def _mask_json(pattern: Pattern, n: int, head: int, layer: int, reach: int | None) -> dict[str, Any]:
    """Rows as runs [first, last] of keys that are held (reached), and of keys that are possible but not held."""
    from patternc.dense import true_runs
    from patternc.report.reached import drawing

    def runs(held: Any) -> list[list[int]]:
        return [[first, last] for first, last, _ in true_runs(held)]

    drawn = drawing(pattern, n, head=head, layer=layer, reach=reach)
    codes = drawn.codes()
    rows = [{"held": runs(row > 0), "possible": runs(row < 0)} for row in codes]
    asked = {"n": n, "head": head, "layer": layer, **({} if reach is None else {"reach": reach})}
    return {"name": pattern.name, "expression": str(pattern), **asked, "rows": rows}


@main.command(short_help="Write a page about it: pictures, reach, guarantees and costs.")
@_source
@_chosen
@_branch
@click.option("--n", type=LENGTH, default=4096, show_default=True, help="Sequence length of the numbers.")
@click.option("--picture", "drawn", type=LENGTH, help="Sequence length of the pictures, up to 2,048; 128 to 512 by default.")
@click.option("--head-dim", type=click.IntRange(1), default=128, show_default=True, help="Head dimension of flops.")
@click.option("--layer", type=click.IntRange(0), help="Only this layer, from the bottom.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    metavar="FILE",
    help="Where to write it.",
)
@_json
@_reports_errors
def report(
    source: str,
    chosen: str | None,
    branch: str | None,
    n: int,
    drawn: int | None,
    head_dim: int,
    layer: int | None,
    output: Path,
    as_json: bool,
) -> None:
    """Write one HTML page about a pattern, complete in itself: its mask, what is reached layer by layer, its guarantees
    with witnesses to look at, its costs and the kernel's plan.

    PATTERN is an expression, the name of a preset, a .pat file, or - for standard input. With --json, the numbers of the
    page are printed too.

    \b
    Examples:
      patternc report "causal & (window(16) | stride(16))"
      patternc report bigbird --n 16K --picture 1K -o bigbird.html
    """
    from patternc.report.content import content
    from patternc.report.page import page

    pattern = _load_one(source, chosen, branch)
    found = content(pattern if layer is None else pattern.layer(layer), n=n, drawn=drawn, head_dim=head_dim)
    try:
        output.write_text(page(found), "utf-8")
    except OSError as error:
        raise _Failure("no-file", f"cannot write '{output}': {error.strerror}") from None
    if as_json:
        _print_json({"file": str(output), **found.to_json()})
    else:
        click.echo(f"wrote {output}")


@main.command(short_help="Prove or refute guarantees about it.")
@_source
@_chosen
@click.option("--n", type=LENGTH, help="Sequence length that the options ask about; every length by default.")
@click.option("--causal", is_flag=True, help="No query reads a key after it.")
@click.option("--nonempty", is_flag=True, help="No query is left without a key.")
@click.option("--self-loops", is_flag=True, help="Every query reads its own position.")
@click.option("--max-hops", type=click.IntRange(0), metavar="H", help="The first H layers connect every key to its queries.")
@click.option("--layers", type=click.IntRange(0), metavar="L", help="So do any L layers in a row.")
@click.option("--universal", is_flag=True, help="A published condition for universal approximation is met.")
@click.option("--hub", is_flag=True, help="In every layer, one position reads all others and is read by them.")
@click.option("--hamiltonian", is_flag=True, help="The layers together hold a Hamiltonian path.")
@click.option("--subset-of", metavar="PATTERN", multiple=True, help="Every pair is one of this pattern.")
@click.option("--equivalent-to", metavar="PATTERN", multiple=True, help="The pairs are those of this pattern.")
@_json
@_reports_errors
def check(
    source: str,
    chosen: str | None,
    n: int | None,
    max_hops: int | None,
    layers: int | None,
    subset_of: Sequence[str],
    equivalent_to: Sequence[str],
    as_json: bool,
    **properties: bool,
) -> None:
    """Prove or refute guarantees: the asserts of a program, and what the options ask for; the first three without either.

    PATTERN is an expression, the name of a preset, a .pat file, - for standard input, or 'presets' for those that ship with
    the package. A guarantee holds for every layer, head, runtime input and score, and without --n for every sequence length.
    The exit status is 1 if any is not proved, be it refuted or unknown, so that a CI job can depend on it.

    \b
    Examples:
      patternc check "causal & (window(4096) | sinks(4))"
      patternc check "causal & (window(1024) | stride(1024))" --n 1M --max-hops 2
      patternc check patterns.pat
      patternc check "causal & window(128)" --subset-of mistral
      patternc check "chunk(8) | blocks(8, 1, 0)" --equivalent-to "blocks(8, 1, 0)"
    """
    from patternc.analysis.guarantees import check as decide
    from patternc.language.asserts import EQUAL, SUBSET, Claim
    from patternc.report.checked import checked

    text, name = (presets_text(), "presets.pat") if source == "presets" else _text(source)
    asserts = [claim for claim in parse_asserts(text, name) if chosen is None or claim.speaks_of(chosen)]
    others = [(SUBSET, other) for other in subset_of] + [(EQUAL, other) for other in equivalent_to]
    limits = (("hops", max_hops), ("coverage", layers))
    asked = [partial(Claim, word) for word, wanted in properties.items() if wanted]
    asked += [partial(Claim, word, operator="<=", limit=limit) for word, limit in limits if limit is not None]
    asked += [partial(Claim, word, other=_load_one(other, None).expression) for word, other in others]
    if not asked and not asserts:
        asked = [partial(Claim, word) for word in ("causal", "nonempty", "self_loops")]
    patterns = _patterns(text, name, chosen) if asked or chosen else []
    claims = [*asserts, *(claim(subject=p.expression, name=p.name, n=n) for p in patterns for claim in asked)]
    results = checked((claim, decide(claim)) for claim in claims)
    if as_json:
        _print_json([result.to_json() for result in results])
    else:
        console = _console()
        if name != EXPRESSION and not asserts:
            about = "" if chosen is None else f" about '{chosen}'"
            console.print(Text(f"{name} has no asserts{about}", "dim"))
        for result in results:
            console.print(result.render())
        for result in results:
            for failure in result.failures:
                console.print()
                console.print(_coloured(failure), soft_wrap=True)
    if not all(results):
        raise SystemExit(NOT_PROVED)


@main.command(short_help="Write the source of its kernel.")
@_source
@_chosen
@_branch
@click.option("--backend", default="triton", show_default=True, metavar="NAME", help="Which backend writes the kernel.")
@click.option("--layer", type=click.IntRange(0), help="Which layer, where the layers differ.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write to a file.")
@_json
@_reports_errors
def emit(
    source: str, chosen: str | None, branch: str | None, backend: str, layer: int | None, output: Path | None, as_json: bool
) -> None:
    """Write the kernel's source: a file of its own that does not need patternc.

    PATTERN is an expression, the name of a preset, a .pat file, or - for standard input.

    \b
    Examples:
      patternc emit "causal & window(4096)" -o window.py
      patternc emit gemma3 --layer 5 --backend reference
    """
    try:
        from patternc.runtime.compile import emit_source
    except ImportError as error:
        raise _Failure("no-emitter", f"the emitter is not available here: {error}") from None
    pattern = _load_one(source, chosen, branch)
    text = emit_source(pattern, backend, layer=layer)
    if output is not None:
        try:
            output.write_text(text, "utf-8")
        except OSError as error:
            raise _Failure("no-file", f"cannot write '{output}': {error.strerror}") from None
    if as_json:
        written = None if output is None else str(output)
        _print_json({"expression": str(pattern), "backend": backend, "layer": layer, "file": written, "source": text})
    elif output is not None:
        click.echo(f"wrote {output}")
    else:
        click.echo(text, nl=not text.endswith("\n"))


FLAGSHIP_DEMO = "causal & (window(32) | global([0]) | stride(16) | random(3) | topk(indexer, 16))"


@main.command(short_help="Compile and run it on random numbers.")
@click.argument("source", metavar="[PATTERN]", default=FLAGSHIP_DEMO)
@_chosen
@_branch
@click.option("--n", type=LENGTH, default=256, show_default=True, help="Sequence length.")
@_json
@_reports_errors
def demo(source: str, chosen: str | None, branch: str | None, n: int, as_json: bool) -> None:
    """Compile a pattern, run it on random numbers and compare it with the reference. Needs torch.

    \b
    Examples:
      patternc demo
      patternc demo "causal & (window(64) | stride(64))" --n 512
    """
    try:
        from patternc.runtime.demo import run_demo
    except ImportError as error:
        hint = "pip install 'patternc[kernels]'" if error.name in ("torch", "triton") else None
        raise _Failure("no-runtime", f"the demo is not available here: {error}", hint) from None
    result = run_demo(_load_one(source, chosen, branch), n=n)
    if as_json:
        _print_json(result.to_json())
    else:
        _print_demo(result)


def _print_demo(found: Demo) -> None:
    from patternc.report.text import mask_text

    console = _console()
    colours = console.color_system is not None
    console.print(Text(str(found.pattern), "bold"))
    console.print(mask_text(found.pattern, min(found.n, 64), width=console.width, colours=colours), soft_wrap=True)
    console.print(Text(f"\n{found.plan}\n"), soft_wrap=True)
    console.print(f"q, k, v: (1, {found.heads}, {found.n}, {found.head_dim}) random numbers on {found.device}")
    console.print(f"{found.backend} backend: {found.forward_ms:.2f} ms; dense reference: {found.reference_ms:.2f} ms")
    console.print(f"largest difference between the two: {found.error:.2g}")


@main.command(short_help="Time it against torch's dense attention and FlexAttention.")
@_source
@_chosen
@_branch
@click.option("--n", "lengths", type=LENGTHS, default="4096", show_default=True, help="Sequence lengths, such as 4K,32K.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Batch size.")
@click.option("--heads", type=click.IntRange(1), default=16, show_default=True, help="Query heads.")
@click.option("--kv-heads", type=click.IntRange(1), help="Key and value heads; as many as query heads by default.")
@click.option("--head-dim", type=click.IntRange(1), default=128, show_default=True, help="Head dimension.")
@click.option(
    "--dtype", default="", metavar="NAME", help="Such as bfloat16 (the default on a GPU), float16, float32 (on a CPU)."
)
@click.option("--device", default="", metavar="NAME", help="cpu, cuda or cuda:1; a GPU by default, where there is one.")
@_layer
@click.option("--backward", is_flag=True, help="Also time the backward pass.")
@click.option("--peers", metavar="NAME,...", help="Only these of the peers below; '' for none.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Also draw a bar chart.")
@_json
@_reports_errors
def bench(
    source: str,
    chosen: str | None,
    branch: str | None,
    lengths: tuple[int, ...],
    layer: int,
    peers: str | None,
    svg: Path | None,
    as_json: bool,
    **shape: Any,
) -> None:
    """Time a pattern on random numbers, on your own GPU or CPU, beside other attentions under the same mask.

    PATTERN is an expression, the name of a preset, a .pat file, or - for standard input. Runtime inputs are drawn at
    random. The peers are torch's attention with a dense mask (sdpa-mask), its causal one where that is the same
    (sdpa-causal), also by cuDNN (sdpa-cudnn), flash-attn-4's own causal and window calls (flash-attn), and FlexAttention
    with its own kernels (flex) and with those of flash-attn-4 (flex-flash); a peer that cannot run is listed with the
    reason. Times are medians in milliseconds, without compilation and without building masks. The floor is what no kernel
    can beat: the pattern's flops at the speed of a matrix product, or its tensors at the speed of a copy, both measured
    here.

    \b
    Examples:
      patternc bench "causal & window(1024)"
      patternc bench bigbird --n 4K,32K --backward --svg times.svg
      patternc bench causal --device cpu --n 1K --heads 4 --peers sdpa-mask,sdpa-causal
    """
    try:
        from patternc.report.bars import bench_svg, bench_table
        from patternc.runtime.bench import SELF, Setting, run
    except ImportError as error:
        hint = "pip install 'patternc[kernels]'" if error.name in ("torch", "triton") else None
        raise _Failure("no-runtime", f"measuring is not available here: {error}", hint) from None
    if peers is not None:
        shape["peers"] = tuple(dict.fromkeys(name.strip() for name in peers.split(",") if name.strip()))
    pattern = _load_one(source, chosen, branch).layer(layer)
    if svg is not None:
        try:
            svg.touch()
        except OSError as error:
            raise _Failure("no-file", f"cannot write '{svg}': {error.strerror}") from None
    report = run(pattern, lengths, Setting(**shape), lambda step: click.echo(step, err=True))
    for result in report.results:
        mine = result.row(SELF)
        if mine is None or mine.forward_ms is None:
            raise _Failure("no-run", f"the pattern did not run at n = {result.n:,}: {mine.note if mine else ''}")
    if svg is not None:
        svg.write_text(bench_svg(report), "utf-8")
    if as_json:
        _print_json(report.to_json())
    else:
        _console().print(bench_table(report))


@main.command(name="presets", short_help="List the published patterns.")
@_json
@_reports_errors
def list_presets(as_json: bool) -> None:
    """List the published patterns that ship with the package; each name is a word of the language.

    \b
    Examples:
      patternc presets
      patternc explain bigbird
    """
    found = presets()
    if as_json:
        _print_json([_preset_json(name, pattern) for name, pattern in found.items()])
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, pattern in found.items():
        table.add_row(Text(name), Text(str(pattern)))
    _console().print(table)


def _preset_json(name: str, pattern: Pattern) -> dict[str, Any]:
    sizes = {"layers": pattern.layers, "heads": pattern.heads, "inputs": list(pattern.inputs)}
    return {"name": name, "expression": str(pattern), **sizes}


if __name__ == "__main__":
    main(prog_name="patternc")
