"""The graph that a plan is built from, and where the weights that it does not hold lie."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from runtime.artifact.records import BoundWeight
from runtime.config import DecoderConfig
from runtime.names import layer_name, place_name

from ..job import load_graph
from ..lowering import Pass, lower
from ..passes.chain_layers import chain_layers
from .passes.external_weights import ExternalWeights, weight_inputs

_ANY_NAME = "plan"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is built for one graph, or for several layers in order."""

    key: str
    """The same for sources that one plan can run."""
    graphs: tuple[str, ...]
    path: str
    """Of the lowered graph; of several the first."""
    model: ir.Model | None
    """The graph with weights as inputs; None: the lowered graph itself is built."""
    weights: Mapping[str, BoundWeight]
    """What to bind to the inputs that were weights."""


def group_graphs(
    graphs: Sequence[str], config: DecoderConfig, layers: Sequence[int], size: int
) -> list[tuple[str, ...]]:
    """Put layers of a kind that follow each other together, at most `size` of them.

    Args:
        graphs: all, in the order of the data.
        config: says which layers are dense.
        layers: the decoder layers among the graphs.
        size: layers of one engine.
    """
    dense = {layer_name(layer): config.is_dense(layer) for layer in layers}
    groups: list[list[str]] = []
    for name in graphs:
        last = groups[-1] if groups else []
        is_next = bool(last) and name in dense and dense.get(last[0]) == dense[name]
        if is_next and len(last) < size:
            last.append(name)
        else:
            groups.append([name])
    return [tuple(group) for group in groups]


def embedded_source(name: str, lowered: str) -> Source:
    """Take a lowered graph with the weights in it."""
    return Source(key=name, graphs=(name,), path=lowered, model=None, weights={})


def external_source(folder: Path, lowered: Mapping[str, str], steps: Sequence[Pass] = ()) -> Source:
    """Take the weights out of one lowered graph, or of several layers that are then joined.

    Args:
        folder: of the artifact.
        lowered: names and paths of the graphs in it, beside their weights, in order.
        steps: more passes of each graph, for the plan alone.
    """
    models, weights = [], {}
    for place, path in enumerate(lowered.values()):
        models.append(lower(load_graph(folder / path), [ExternalWeights(), *steps]).model)
        for name, bound in _bound(models[-1], Path(path).parent).items():
            weights[name if len(lowered) == 1 else place_name(place, name)] = bound
    model = models[0] if len(models) == 1 else chain_layers(models, _ANY_NAME)
    model.graph.name = _ANY_NAME  # graphs of a kind differ in nothing else
    content = ir.to_proto(model).SerializeToString(deterministic=True)
    return Source(
        key=hashlib.sha256(content).hexdigest(),
        graphs=tuple(lowered),
        path=next(iter(lowered.values())),
        model=model,
        weights=weights,
    )


def _bound(model: ir.Model, folder: Path) -> dict[str, BoundWeight]:
    return {
        one.name: BoundWeight(
            path=(folder / one.location).as_posix(), offset=one.offset, length=one.length
        )
        for one in weight_inputs(model)
    }
