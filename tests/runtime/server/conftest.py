"""The trained model, served."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import Session
from tests.runtime.server.served import Pace, Served, serving, slow_down


@pytest.fixture(scope="session")
def session(nano: Path) -> Session:
    """Four slots of 320 tokens; one server at a time may have them."""
    return Session.open(nano, num_threads=1)


@pytest.fixture
def served(session: Session) -> Iterator[Served]:
    with serving(session) as one:
        yield one


@pytest.fixture
def pace(session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pace]:
    one = Pace()
    slow_down(session, monkeypatch, one)
    yield one
    one.open.set()
