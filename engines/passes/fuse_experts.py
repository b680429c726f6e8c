"""Chosen experts in one operator: `MoE` of ONNX Runtime reads only the weights that it needs.

How it gets our scores is told in `softmax_mixture` and `share_mixture`.

Experts whose inner values are rounded keep their neutral bodies: the operator cannot round there.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from export.graph.widen import widen_initializer
from runtime.names import BLOCK_EXPERTS, EXPERTS_DOWN, MICROSOFT, ROUTER

from ..lowering import Lowered
from .graph_edits import (
    data_of,
    drop_if_unused,
    ints,
    neutral_nodes,
    register,
    static_size,
    stored_initializer,
)
from .plain_router import normalised_router
from .routed_experts import RoutedExperts, drop_unused_bodies, routed_experts, unpaired
from .share_mixture import weighing_of

_FUSED = ("MoE", "QMoE", BLOCK_EXPERTS)
"""What a router may feed: what is made here, and what is made of integer codes before."""


@dataclass(frozen=True, kw_only=True)
class FuseExperts:
    """Replace each ExpertsUp and ExpertsDown by one `MoE`.

    With `cuts_routers` a router that divides by the sum of its scores is told not to: fewer nodes,
    as it matters where each is a kernel to launch, and other roundings.
    """

    cuts_routers: bool = False

    @property
    def name(self) -> str:
        """Tells whether routers are changed."""
        return "fuse-experts-by-share" if self.cuts_routers else "fuse-experts"

    def requires(self, model: ir.Model) -> str | None:
        """The two halves come in pairs."""
        return unpaired(model)

    def run(self, lowered: Lowered) -> Lowered:
        """Fuse each pair; gate and up rows are interleaved in new weights."""
        weights = list(lowered.new_weights)
        for pair in routed_experts(lowered.model):
            weights += self._fuse(lowered.model, pair)
        drop_unused_bodies(lowered.model)
        return replace(lowered, new_weights=tuple(weights))

    def ensures(self, model: ir.Model) -> str | None:
        """No pair is left that could be fused, and a router feeds each fused one."""
        left, unfused = routed_experts(model), neutral_nodes(model, EXPERTS_DOWN)
        fused = [node for node in model.graph if node.op_type in _FUSED]
        if left or len(fused) + len(unfused) != len(neutral_nodes(model, ROUTER)):
            return f"{len(left)} pairs left, {len(fused)} fused, {len(unfused)} cannot be"
        return None

    def _fuse(self, model: ir.Model, pair: RoutedExperts) -> list["RelaidExperts"]:
        """Replace one pair by `MoE` and return its weights."""
        graph, tape = model.graph, ir.tape.Tape()
        maker = pair.gate.producer()
        if maker is None or maker.op_type == "Cast":
            made, weights = _relay_stored(graph, pair)
        else:
            made, weights = [], _relay_computed(tape, pair)
        router = normalised_router(model, pair.scores) if self.cuts_routers else None
        weighing = weighing_of(model, pair, router, num_experts=static_size(pair.gate, 0))
        attributes: dict[str, int | float | str] = {
            "k": static_size(pair.chosen, 1),
            "activation_type": "swiglu",
            "swiglu_fusion": 1,
            "activation_alpha": 1.0,
            "activation_beta": 0.0,
            "normalize_routing_weights": 1,
        }
        inputs = [pair.hidden, weighing.logits(tape), weights[0], None, weights[1]]
        mixed = tape.op("MoE", inputs, attributes, domain=MICROSOFT)
        scaled = weighing.scaled(tape, mixed)
        old = pair.mixed
        scaled.type, scaled.shape = old.type, old.shape
        graph.insert_before(pair.down_node, tape.nodes)
        graph.opset_imports[MICROSOFT] = 1
        ir.convenience.replace_all_uses_with(old, scaled)
        graph.remove([pair.down_node, pair.up_node], safe=True)
        if made:
            for value in (pair.gate, pair.up, pair.down):
                drop_if_unused(graph, value)
        return made


@dataclass(frozen=True, kw_only=True)
class RelaidExperts:
    """Expert matrices in the order that `MoE` reads; satisfies `weights_file.Values`."""

    name: str
    parts: tuple[ir.TensorProtocol, ...]
    """(E, in, out) each; their rows after the turn are interleaved."""

    @property
    def dtype(self) -> ir.DataType:
        """Stored type, that of the parts."""
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(E, parts * out, in)."""
        experts, inputs, outputs = self.parts[0].shape.numpy()
        return (experts, len(self.parts) * outputs, inputs)

    def blocks(self) -> Iterable[bytes]:
        """Yield expert by expert."""
        arrays = [_as_bits(part) for part in self.parts]
        for expert in range(self.shape[0]):
            turned = [array[expert].T for array in arrays]  # (out, in) each
            yield np.stack(turned, axis=1).reshape(self.shape[1:]).tobytes()


def _relay_stored(
    graph: ir.Graph, pair: RoutedExperts
) -> tuple[list[RelaidExperts], list[ir.Value]]:
    """Store the weights anew in the operator's order."""
    stem = str(stored_initializer(pair.gate).name).rpartition(".")[0]
    gate, up, down = (
        data_of(stored_initializer(value)) for value in (pair.gate, pair.up, pair.down)
    )
    fc1 = RelaidExperts(name=f"{stem}.fc1", parts=(gate, up))
    fc2 = RelaidExperts(name=f"{stem}.fc2", parts=(down,))
    return [fc1, fc2], [_register(graph, relaid, pair.gate.dtype) for relaid in (fc1, fc2)]


def _relay_computed(tape: ir.tape.Tape, pair: RoutedExperts) -> list[ir.Value]:
    """Turn what quantised weights mean; ONNX Runtime does it once, at load."""
    experts, inputs, outputs = (static_size(pair.gate, axis) for axis in range(3))
    turned = [
        tape.op("Transpose", [value], {"perm": [0, 2, 1]})
        for value in (pair.gate, pair.up, pair.down)
    ]
    columns = [tape.op("Unsqueeze", [value, ints(tape, 2)]) for value in turned[:2]]
    beside = tape.op("Concat", columns, {"axis": 2})  # (E, out, 2, in)
    shape = ints(tape, experts, 2 * outputs, inputs)
    return [tape.op("Reshape", [beside, shape]), turned[2]]


def _register(graph: ir.Graph, weights: RelaidExperts, dtype: ir.DataType | None) -> ir.Value:
    """Add an initialiser without a value; widen it if the graph computes in another type."""
    (value,) = register(graph, [weights])
    return value if weights.dtype == dtype else widen_initializer(graph, value)


def _as_bits(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    """View a tensor's memory as unsigned integers: values are moved, never read."""
    array = tensor.numpy()
    return array.view(f"u{array.dtype.itemsize}")
