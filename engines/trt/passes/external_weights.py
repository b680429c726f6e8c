"""Weights as inputs of the network, so that one plan serves all layers of a kind.

What lies in a weights file differs between layers and becomes an input of the same name; what the
trace put into the graph itself (sizes, axes, rotation frequencies) is the same in all layers of a
kind and stays. Such plans hold no weights: a few MiB each.
"""

from dataclasses import dataclass

import onnx_ir as ir

from ...lowering import Lowered


@dataclass(frozen=True, kw_only=True)
class WeightInput:
    """An input that is bound once, to bytes of a weights file."""

    name: str
    """Of the input; `NAME.bytes` is another view of the same bytes as `NAME`."""
    dtype: ir.DataType
    shape: tuple[int, ...]
    location: str
    """The file, relative to the folder of the graph."""
    offset: int
    length: int
    """Bytes."""


class ExternalWeights:
    """Turn every initialiser that lies in a file, or has no value, into an input."""

    name = "external-weights"

    def requires(self, model: ir.Model) -> str | None:
        """Every weight has a type and fixed sizes."""
        open_shapes = [
            name
            for name, value in model.graph.initializers.items()
            if value.dtype is None or value.shape is None or not value.shape.is_static()
        ]
        return f"weights without fixed sizes: {open_shapes[:3]}" if open_shapes else None

    def run(self, lowered: Lowered) -> Lowered:
        """Move them behind the other inputs, in the order of the graph."""
        graph = lowered.model.graph
        for name, value in list(graph.initializers.items()):
            if _lies_outside(value):
                graph.initializers.pop(name)
                graph.inputs.append(value)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No weight is left."""
        left = [name for name, value in model.graph.initializers.items() if _lies_outside(value)]
        return f"weights that are not inputs: {left[:3]}" if left else None


def weight_inputs(model: ir.Model) -> tuple[WeightInput, ...]:
    """List what has to be bound to the inputs that were weights, in the order of the inputs.

    Args:
        model: as `ExternalWeights` leaves it; a graph that was written and read again has forgotten
            where its weights lie.
    """
    found = []
    for value in model.graph.inputs:
        stored = value.const_value
        if isinstance(stored, ir.ExternalTensor):
            found.append(
                WeightInput(
                    name=str(value.name),
                    dtype=stored.dtype,
                    shape=tuple(stored.shape.numpy()),
                    location=str(stored.location),
                    offset=stored.offset or 0,
                    length=stored.length or stored.nbytes,
                )
            )
    return tuple(found)


def _lies_outside(value: ir.Value) -> bool:
    return value.const_value is None or isinstance(value.const_value, ir.ExternalTensor)
