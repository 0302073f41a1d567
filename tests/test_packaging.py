"""What pyproject.toml says against what is there; `make package` checks the built wheel itself."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import patternc

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = {
    "patternc": "patternc",
    "patternc.grammar": "grammar",
    "patternc.backends": "backends",
    "patternc.report": "patternc/report",
}


def test_every_folder_of_the_core_is_a_listed_package() -> None:
    modules = (ROOT / "patternc").rglob("*.py")
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in modules}
    assert sorted(folders | {"patternc.grammar", "patternc.backends"}) == sorted(SETUPTOOLS["packages"])


def test_grammar_and_backends_are_mapped_and_flat() -> None:
    assert SETUPTOOLS["package-dir"] == {"patternc.grammar": "grammar", "patternc.backends": "backends"}
    for folder in ("grammar", "backends"):
        assert (ROOT / folder / "__init__.py").exists()
        nested = [path for path in (ROOT / folder).rglob("*.py") if path.parent != ROOT / folder]
        assert not nested, f"a module in a subfolder is missing from the wheel: {nested}"


def test_backend_names_shadow_nothing() -> None:
    names = {path.stem for path in (ROOT / "backends").glob("*.py")}
    assert not names & {"torch", "triton", "numpy", "jax"}


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("patternc", "py.typed"),
        ("patternc.grammar", "pattern.lark"),
        ("patternc.grammar", "presets.pat"),
        ("patternc.grammar", "SPEC.md"),
        ("patternc.report", "page.css"),
        ("patternc.report", "page.js"),
    ],
)
def test_data_files_exist_and_are_packaged(package: str, name: str) -> None:
    path = ROOT / FOLDERS[package] / name
    assert path.exists()
    assert any(path.match(pattern) for pattern in SETUPTOOLS["package-data"][package])


def test_versions_agree() -> None:
    assert PROJECT["project"]["version"] == patternc.__version__ == version("patternc")
    assert f"## {patternc.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_direct_requirement_is_pinned() -> None:
    lines = (ROOT / "constraints" / "cpu.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    pinned = {canonical(pin.split("==")[0]) for pin in pins}
    groups = PROJECT["dependency-groups"].values()
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(r for group in [*groups, *extras] for r in group)]
    assert {canonical(re.split(r"[\s<>=!~;\[]", r)[0]) for r in wanted} <= pinned


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
