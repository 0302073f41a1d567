"""Check the wheel in a folder: its contents against the source tree, then its use in a clean environment without torch.

    python tests/packaging/check_wheel.py DIST WHEELHOUSE

WHEELHOUSE holds the wheels of the core's requirements; nothing is downloaded.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"patternc": "patternc", "grammar": "patternc/grammar", "backends": "patternc/backends"}
DATA = {
    "patternc/py.typed",
    "patternc/grammar/pattern.lark",
    "patternc/grammar/presets.pat",
    "patternc/grammar/SPEC.md",
    "patternc/report/page.css",
    "patternc/report/page.js",
}
SMOKE = """
import importlib.util, patternc as pc, patternc.grammar, patternc.backends
assert importlib.util.find_spec("torch") is None, "torch came along"
assert pc.parse("causal & window(3)").nnz(10) == 27
assert len(pc.presets()) > 10
print(pc.__version__)
"""


def sources(suffix: str) -> set[str]:
    """Every source file of the tree, under the name that it has in the wheel."""
    return {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob(f"*{suffix}")
    }


def check_contents(wheel: Path, sdist: Path) -> None:
    """The wheel holds every module, the data files and the licence, and nothing else."""
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = sources(".py") | DATA
    assert wanted <= names, f"missing from the wheel: {sorted(wanted - names)}"
    info = {name for name in names if ".dist-info/" in name}
    extra = names - wanted - info
    assert not extra, f"in the wheel, but not known to this check: {sorted(extra)}"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in info), "the licence is missing from the wheel"
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("pyproject.toml", "LICENSE", "README.md", "grammar/pattern.lark", "grammar/SPEC.md"):
        assert needed in packed, f"missing from the sdist: {needed}"


def check_use(wheel: Path, wheelhouse: Path) -> None:
    """The wheel installs without torch, imports, and its command works."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        bin_folder = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin")

        def call(name: str, *arguments: str) -> str:
            command = [bin_folder / name, *arguments]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            assert done.returncode == 0, f"{name} {' '.join(arguments)} ended in {done.returncode}:\n{done.stdout}{done.stderr}"
            return done.stdout.strip()

        call("python", "-m", "pip", "install", "-q", "--no-index", "--find-links", str(wheelhouse), str(wheel))
        version = call("python", "-c", SMOKE)
        assert f"-{version}-" in wheel.name, f"the wheel {wheel.name} holds version {version}"
        for command in ("explain", "check"):
            assert call("patternc", command, "causal & window(64)"), f"patternc {command} printed nothing"


def main() -> None:
    dist, wheelhouse = (Path(argument).resolve() for argument in sys.argv[1:])
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    check_contents(wheel, sdist)
    check_use(wheel, wheelhouse)
    print(f"{wheel.name}: contents complete, works without torch")


if __name__ == "__main__":
    main()
