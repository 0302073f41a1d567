"""Imports run one way: a module imports only from its own layer and from those before it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["source", "diagnostics", "scalar", "relation", "scorers", "terms", "random_edges", "language", "dense", "pattern"]
ORDER += ["lower", "analysis", "backend", "combine", "compression", "runtime", "selection"]
ORDER += ["__init__", "report", "cli", "__main__", "testing"]
FACADES = {"pattern", "__init__"}  # may reach up, but not while they are imported: everything hangs on what a user holds
CORE = sorted((ROOT / "patternc").rglob("*.py"))
BACKENDS = sorted((ROOT / "backends").rglob("*.py"))


def layer(module: str) -> str:
    """The layer of a module inside patternc, such as "language" of `patternc.language.parser`."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Every import of a file: the module, whether it runs when the file is imported, and the line."""
    tree = ast.parse(path.read_text())
    deferred = {id(node) for block in ast.walk(tree) if runs_later(block) for node in ast.walk(block)}
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(package[: -node.level]) if node.level else ""
            base = ".".join(part for part in (parent, node.module) if part)
            # `from patternc import relation` imports the module `patternc.relation`
            names = [f"{base}.{a.name}" if base == "patternc" and is_module(a.name) else base for a in node.names]
        else:
            continue
        yield from ((name, id(node) not in deferred, node.lineno) for name in names)


def runs_later(block: ast.AST) -> bool:
    """Whether what stands in the block does not run when the file is imported."""
    only_types = isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
    return only_types or isinstance(block, ast.FunctionDef)


def is_module(name: str) -> bool:
    return (ROOT / "patternc" / name).is_dir() or (ROOT / "patternc" / f"{name}.py").exists()


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downward(path: Path) -> None:
    mine = path.relative_to(ROOT / "patternc").with_suffix("").parts[0]
    assert mine in ORDER, f"'{mine}' is in no layer: give it its place in ORDER"
    for name, at_import, line in imports(path):
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        assert not name.startswith(("patternc.backends", "patternc.grammar", "backends", "grammar")), where
        if name.partition(".")[0] == "patternc" and (at_import or mine not in FACADES):
            assert ORDER.index(layer(name)) <= ORDER.index(mine), f"{where}, which is above '{mine}'"
        if name.partition(".")[0] == "islpy":
            assert path.name == "relation.py", f"{where}; only relation.py knows the library"


@pytest.mark.parametrize("path", BACKENDS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_backends_import_the_core_absolutely_and_each_other_relatively(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            assert node.level <= 1, f"{where}: import the core as 'patternc...'"
            assert not (node.level == 0 and node.module and node.module.startswith(("patternc.backends", "backends"))), where


def test_importing_the_package_imports_no_heavy_library() -> None:
    heavy = {"torch", "triton", "transformers", "hypothesis", "networkx", "scipy", "pytest"}
    code = f"import sys, patternc; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
