"""The graph that a plan is built from, and where the weights that it does not hold lie."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from runtime.artifact.records import BoundWeight

from ..job import load_graph
from ..lowering import lower
from .passes.external_weights import ExternalWeights, weight_inputs


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is built for one graph."""

    key: str
    """The same for graphs that one plan can run."""
    path: str
    """Of the lowered graph."""
    model: ir.Model | None
    """The graph with weights as inputs; None: the lowered graph itself is built."""
    weights: Mapping[str, BoundWeight]
    """What to bind to the inputs that were weights."""


def external_source(folder: Path, lowered: str) -> Source:
    """Take the weights out of a lowered graph.

    Args:
        folder: of the artifact.
        lowered: path of the graph in it, beside its weights.
    """
    model = lower(load_graph(folder / lowered), [ExternalWeights()]).model
    place = Path(lowered).parent
    weights = {
        one.name: BoundWeight(
            path=(place / one.location).as_posix(), offset=one.offset, length=one.length
        )
        for one in weight_inputs(model)
    }
    model.graph.name = "plan"  # graphs of a kind differ in nothing else
    content = ir.to_proto(model).SerializeToString(deterministic=True)
    key = hashlib.sha256(content).hexdigest()
    return Source(key=key, path=lowered, model=model, weights=weights)
