"""Chosen experts in one operator: `MoE` of ONNX Runtime reads only the weights that it needs.

The operator takes the K largest of `router_probs` and weighs the experts by their softmax. The
logarithms of our scores at the chosen experts, and a large negative number elsewhere, make it
choose the same ones and weigh them by score / sum; the sum is multiplied back afterwards. Where a
graph computes in 16 bits, so does the operator with the logarithms: they are made relative to the
mean score first, which leaves little to round.

Experts whose inner values are rounded keep their neutral bodies: the operator cannot round there.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from export.graph.edits import given
from export.graph.widen import NARROW, widen_initializer
from runtime.names import BLOCK_EXPERTS, EXPERTS_DOWN, ROUTER

from ..lowering import Lowered
from .graph_edits import (
    MICROSOFT,
    data_of,
    drop_if_unused,
    ints,
    neutral_nodes,
    register,
    static_size,
    stored_initializer,
)
from .routed_experts import RoutedExperts, drop_unused_bodies, routed_experts, unpaired

_FUSED = ("MoE", "QMoE", BLOCK_EXPERTS)
"""What a router may feed: what is made here, and what is made of integer codes before."""
_NEVER = -1e30
"""Where no expert was chosen; minus infinity in fp16."""


class FuseExperts:
    """Replace each ExpertsUp and ExpertsDown by one `MoE`."""

    name = "fuse-experts"

    def requires(self, model: ir.Model) -> str | None:
        """The two halves come in pairs."""
        return unpaired(model)

    def run(self, lowered: Lowered) -> Lowered:
        """Fuse each pair; gate and up rows are interleaved in new weights."""
        weights = list(lowered.new_weights)
        for pair in routed_experts(lowered.model):
            weights += _fuse(lowered.model, pair)
        drop_unused_bodies(lowered.model)
        return replace(lowered, new_weights=tuple(weights))

    def ensures(self, model: ir.Model) -> str | None:
        """No pair is left that could be fused, and a router feeds each fused one."""
        left, unfused = routed_experts(model), neutral_nodes(model, EXPERTS_DOWN)
        fused = [node for node in model.graph if node.op_type in _FUSED]
        if left or len(fused) + len(unfused) != len(neutral_nodes(model, ROUTER)):
            return f"{len(left)} pairs left, {len(fused)} fused, {len(unfused)} cannot be"
        return None


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


def _fuse(model: ir.Model, pair: RoutedExperts) -> list[RelaidExperts]:
    """Replace one pair by `MoE` and return its weights."""
    graph, tape = model.graph, ir.tape.Tape()
    maker = pair.gate.producer()
    if maker is None or maker.op_type == "Cast":
        made, weights = _relay_stored(graph, pair)
    else:
        made, weights = [], _relay_computed(tape, pair)
    logits = _router_logits(tape, pair, num_experts=static_size(pair.gate, 0))
    attributes: dict[str, int | float | str] = {
        "k": static_size(pair.chosen, 1),
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 1,
    }
    inputs = [pair.hidden, logits, weights[0], None, weights[1]]
    mixed = tape.op("MoE", inputs, attributes, domain=MICROSOFT)
    total = tape.op("ReduceSum", [pair.scores, ints(tape, -1)], {"keepdims": 1})
    scaled = _scaled(tape, mixed, total, given(pair.hidden.dtype))
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


def _router_logits(tape: ir.tape.Tape, pair: RoutedExperts, *, num_experts: int) -> ir.Value:
    """Logarithms of the scores at the chosen experts, much less elsewhere: (N, E)."""
    tiny = tape.op("Constant", [], {"value_float": 1e-30})
    is_narrow = pair.hidden.dtype in NARROW
    scores = tape.op("Div", [pair.scores, _mean(tape, pair)]) if is_narrow else pair.scores
    logs = tape.op("Log", [tape.op("Max", [scores, tiny])])
    rows = tape.op("Shape", [pair.chosen], {"start": 0, "end": 1})
    shape = tape.op("Concat", [rows, ints(tape, num_experts)], {"axis": 0})
    never = tape.op("Constant", [], {"value_float": _NEVER})
    base = tape.op("Expand", [never, shape])
    logits = tape.op("ScatterElements", [base, pair.chosen, logs], {"axis": 1})
    return _cast(tape, logits, given(pair.hidden.dtype)) if is_narrow else logits


def _mean(tape: ir.tape.Tape, pair: RoutedExperts) -> ir.Value:
    """Average the scores of each token, (N, 1); of none it is a number that divides nothing."""
    total = tape.op("ReduceSum", [pair.scores, ints(tape, -1)], {"keepdims": 1})
    count = tape.op("Constant", [], {"value_float": 1.0 / static_size(pair.chosen, 1)})
    least = tape.op("Constant", [], {"value_float": 1e-30})
    return tape.op("Max", [tape.op("Mul", [total, count]), least])


def _scaled(tape: ir.tape.Tape, mixed: ir.Value, total: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Multiply the mixture back, in fp32."""
    if dtype not in NARROW:
        return tape.op("Mul", [mixed, total])
    wide = tape.op("Mul", [_cast(tape, mixed, ir.DataType.FLOAT), total])
    return _cast(tape, wide, dtype)


def _cast(tape: ir.tape.Tape, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return tape.op("Cast", [value], {"to": dtype.value})


def _register(graph: ir.Graph, weights: RelaidExperts, dtype: ir.DataType | None) -> ir.Value:
    """Add an initialiser without a value; widen it if the graph computes in another type."""
    (value,) = register(graph, [weights])
    return value if weights.dtype == dtype else widen_initializer(graph, value)


def _as_bits(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    """View a tensor's memory as unsigned integers: values are moved, never read."""
    array = tensor.numpy()
    return array.view(f"u{array.dtype.itemsize}")
