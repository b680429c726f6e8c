"""How long work reports how far it is; who shows it is not its business."""

from typing import Protocol


class Progress(Protocol):
    """Told after every unit of work."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report `done` of `total` units (bytes, graphs or examples) of a named stage."""


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""
