import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """Triton decides on import whether it interprets: these tests need a process of their own."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    skip = pytest.mark.skip(reason="needs Triton's interpreter: TRITON_INTERPRET=1 python -m pytest tests/triton_interpreter")
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(skip)


@pytest.fixture
def filled():
    """Memory that nothing has written holds NaN."""
    torch = pytest.importorskip("torch")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
