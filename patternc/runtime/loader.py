"""Emitted source to a module. Triton needs its kernels in a real file, so the source is kept in a cache folder by content."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def cache_folder() -> Path:
    """Where emitted files are kept: $PATTERNC_CACHE, or the user's cache folder, or a temporary one."""
    chosen = os.environ.get("PATTERNC_CACHE")
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patternc"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        if chosen:
            raise
    return Path(tempfile.mkdtemp(prefix="patternc-"))


@lru_cache(maxsize=256)
def load(source: str) -> ModuleType:
    """The module of an emitted source file; the same source is loaded once."""
    name = "patternc_kernel_" + hashlib.sha256(source.encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}.py"
    if not path.exists() or path.read_text("utf-8") != source:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(source)
        Path(file.name).replace(path)
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
