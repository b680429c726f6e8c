"""The library of custom ops, built once."""

from pathlib import Path

import pytest

from runtime.ops.build import build_library
from runtime.ops.library import LIBRARY, find_library


@pytest.fixture(scope="session")
def library() -> Path:
    """The library beside its sources; built if there is none, or one of other sources."""
    found = find_library() if LIBRARY.exists() else None
    return found or build_library()
