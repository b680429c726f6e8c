"""The library of custom ops, built once; without a compiler its tests are skipped."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import UnsupportedError
from runtime.ops.build import build_library
from runtime.ops.library import SWITCH, find_library


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    """The library beside its sources, built if need be; sessions load it as long as this lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "on")
        found = _found()
        if found is None and not (shutil.which("g++") or shutil.which("clang++")):
            pytest.skip("no C++ compiler")
        yield found or build_library()


def _found() -> Path | None:
    try:
        return find_library()
    except UnsupportedError:  # of other sources
        return None
