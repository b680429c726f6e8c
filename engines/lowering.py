"""A lowering: an ordered list of named passes that fit neutral graphs to one target.

Each pass says what it needs and what it promises; both are checked, so that a pass that silently
does nothing, or half of it, stops the build.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from export.graph.weights_file import Values


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A graph on its way, and the weights that the lowering made for it."""

    model: ir.Model
    new_weights: tuple[Values, ...] = ()
    """Tensors that are not in the neutral weights file; written to one of the target's own."""


class Pass(Protocol):
    """One step of a lowering."""

    @property
    def name(self) -> str:
        """Name in the manifest."""

    def requires(self, model: ir.Model) -> str | None:
        """Return what is missing for the pass to be right, or None."""

    def run(self, lowered: Lowered) -> Lowered:
        """Change the model; it belongs to the lowering and may be altered in place."""

    def ensures(self, model: ir.Model) -> str | None:
        """Return what is wrong afterwards, or None."""


def lower(model: ir.Model, passes: Sequence[Pass]) -> Lowered:
    """Run the passes in order.

    Raises:
        RuntimeError: a pass was not applicable or broke its promise; names it and the graph.
    """
    lowered = Lowered(model=model)
    for step in passes:
        _check(step, model, "requires", step.requires(lowered.model))
        lowered = step.run(lowered)
        _check(step, model, "ensures", step.ensures(lowered.model))
    return lowered


def _check(step: Pass, model: ir.Model, promise: str, problem: str | None) -> None:
    if problem:
        raise RuntimeError(f"lowering pass {step.name} on {model.graph.name}: {promise}: {problem}")
