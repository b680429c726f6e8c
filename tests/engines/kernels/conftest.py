"""One interpreter for all tests of this folder."""

from collections.abc import Iterator

import pytest

from .interpreter import Interpreter, start_interpreter


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    with start_interpreter() as running:
        yield running
