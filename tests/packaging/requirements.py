"""Print what the core needs, a requirement a line, as pyproject.toml says it."""

import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
print(*project["dependencies"], sep="\n")
