"""Small edits that several rewrites of graphs make."""

from typing import TypeVar

_T = TypeVar("_T")


def given(value: _T | None) -> _T:
    """Return an input, the producer of one, a type or a shape that must be there."""
    if value is None:
        raise RuntimeError("a graph lacks an input, a type or a shape")
    return value
