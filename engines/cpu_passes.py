"""Passes of the `cpu` target: what ONNX Runtime's CPU kernels want.

Source of the routing recipe: the `MoE` operator takes the K largest of `router_probs` and weighs
the experts by their softmax. Logarithms of the chosen scores, and a large negative number
elsewhere, make it choose ours and weigh them by score / sum; the sum is put back behind it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from runtime.names import DOMAIN, EXPERTS_DOWN, EXPERTS_UP, ROUTER

from .lowering import Lowered

_MICROSOFT = "com.microsoft"
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class ComputeInFloat32:
    """Keep 16-bit weights as they are stored and compute everything in fp32.

    The CPU has no bf16 matrix product and emulates fp16; widening a weight is exact.
    """

    name = "compute-in-fp32"

    def requires(self, model: ir.Model) -> str | None:
        """Accept any neutral graph; an fp32 one stays as it is."""
        return None

    def run(self, lowered: Lowered) -> Lowered:
        """Cast each 16-bit initialiser once, and turn every other 16-bit value to fp32."""
        graph = lowered.model.graph
        for value in list(graph.initializers.values()):
            if value.dtype in _NARROW:
                _widen(graph, value)
        for node in graph:
            _retarget_cast(node)
            for output in node.outputs:
                output.dtype = _widened(output.dtype)
        for value in (*graph.inputs, *graph.outputs):
            value.dtype = _widened(value.dtype)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """Nothing but initialisers is 16 bits wide."""
        values = [*model.graph.inputs, *model.graph.outputs]
        values += [output for node in model.graph for output in node.outputs]
        left = [value.name for value in values if value.dtype in _NARROW]
        return f"16-bit values left: {left[:5]}" if left else None


class FuseExperts:
    """Replace ExpertsUp and ExpertsDown by `MoE` of `com.microsoft`: it reads chosen experts only."""

    name = "fuse-experts"

    def requires(self, model: ir.Model) -> str | None:
        """The two halves come in pairs, fed by initialisers."""
        ups, downs = (_nodes(model, op_type) for op_type in (EXPERTS_UP, EXPERTS_DOWN))
        return None if len(ups) == len(downs) else f"{len(ups)} {EXPERTS_UP}, {len(downs)} down"

    def run(self, lowered: Lowered) -> Lowered:
        """Fuse each pair; gate and up rows are interleaved in new weights."""
        weights = list(lowered.new_weights)
        for down in _nodes(lowered.model, EXPERTS_DOWN):
            weights += _fuse(lowered.model, down)
        for op_type in (EXPERTS_UP, EXPERTS_DOWN):
            lowered.model.functions.pop((DOMAIN, op_type, ""), None)
        if weights:
            lowered.model.graph.opset_imports[_MICROSOFT] = 1
        return replace(lowered, new_weights=tuple(weights))

    def ensures(self, model: ir.Model) -> str | None:
        """No expert op is left, and a router feeds each fused one."""
        left = _nodes(model, EXPERTS_UP) + _nodes(model, EXPERTS_DOWN)
        fused = [node for node in model.graph if node.op_type == "MoE"]
        if left or len(fused) != len(_nodes(model, ROUTER)):
            return f"{len(left)} expert ops left, {len(fused)} fused"
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
        experts, inputs, outputs = (int(size) for size in self.parts[0].shape)
        return (experts, len(self.parts) * outputs, inputs)

    def blocks(self) -> Iterable[memoryview]:
        """Yield expert by expert."""
        arrays = [_as_bits(part) for part in self.parts]
        for expert in range(self.shape[0]):
            turned = [np.asarray(array[expert]).T for array in arrays]  # (out, in) each
            rows = np.stack(turned, axis=1).reshape(self.shape[1:])  # (parts * out, in)
            yield memoryview(np.ascontiguousarray(rows).view(np.uint8).reshape(-1))


def _fuse(model: ir.Model, down: ir.Node) -> list[RelaidExperts]:
    """Replace one pair by `MoE` and return its weights."""
    inner, experts, scores, down_weight = (_given(value) for value in down.inputs)
    up = inner.producer()
    if up is None or up.op_type != EXPERTS_UP:
        raise RuntimeError(f"{EXPERTS_DOWN} is not fed by {EXPERTS_UP}")
    hidden, _, gate_weight, up_weight = (_given(value) for value in up.inputs)
    gate, lift, lower = (_stored(value) for value in (gate_weight, up_weight, down_weight))
    relaid = [
        RelaidExperts(name=f"{_stem(gate)}.fc1", parts=(_data(gate), _data(lift))),
        RelaidExperts(name=f"{_stem(gate)}.fc2", parts=(_data(lower),)),
    ]
    graph = model.graph
    fc1, fc2 = (_register(graph, weights, gate_weight) for weights in relaid)
    tape = ir.tape.Tape()
    num_experts = relaid[0].shape[0]
    logits = _router_logits(tape, experts, scores, num_experts)
    mixed = tape.op(
        "MoE",
        [hidden, logits, fc1, None, fc2],
        {
            "k": int(_given(experts).shape[1]),  # type: ignore[index,arg-type]  # traced, hence known
            "activation_type": "swiglu",
            "swiglu_fusion": 1,
            "activation_alpha": 1.0,
            "activation_beta": 0.0,
            "normalize_routing_weights": 1,
        },
        domain=_MICROSOFT,
    )
    total = tape.op("ReduceSum", [scores, _ints(tape, [-1])], {"keepdims": 1})
    scaled = tape.op("Mul", [mixed, total])
    scaled.dtype, scaled.shape = down.outputs[0].dtype, down.outputs[0].shape
    graph.insert_before(down, tape.nodes)
    ir.convenience.replace_all_uses_with(down.outputs[0], scaled)
    graph.remove([down, up], safe=True)
    _drop_unused(graph, (gate_weight, up_weight, down_weight))
    return relaid


def _router_logits(
    tape: ir.tape.Tape, experts: ir.Value, scores: ir.Value, num_experts: int
) -> ir.Value:
    """Logarithms of the scores at the chosen experts, -1e30 elsewhere: (N, E)."""
    tiny = tape.op("Constant", [], {"value_float": 1e-30})
    logs = tape.op("Log", [tape.op("Max", [scores, tiny])])
    rows = tape.op("Shape", [experts], {"start": 0, "end": 1})
    shape = tape.op("Concat", [rows, _ints(tape, [num_experts])], {"axis": 0})
    never = tape.op("Constant", [], {"value_float": -1e30})
    base = tape.op("Expand", [never, shape])
    return tape.op("ScatterElements", [base, experts, logs], {"axis": 1})


def _ints(tape: ir.tape.Tape, values: Sequence[int]) -> ir.Value:
    return tape.op("Constant", [], {"value_ints": list(values)})


def _register(graph: ir.Graph, weights: RelaidExperts, like: ir.Value) -> ir.Value:
    """Add an initialiser without a value; widen it if the graph computes in another type."""
    value = ir.Value(
        name=weights.name, type=ir.TensorType(weights.dtype), shape=ir.Shape(weights.shape)
    )
    graph.register_initializer(value) if value.const_value else graph.initializers.add(value)
    if weights.dtype == like.dtype:
        return value
    return _widen(graph, value)


def _widen(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Put a Cast to fp32 between an initialiser and all its users."""
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
    wide = cast.outputs[0]
    wide.name = f"{value.name}.fp32"
    wide.dtype, wide.shape = ir.DataType.FLOAT, value.shape
    for user, index in list(value.uses()):
        if user is not cast:
            user.replace_input_with(index, wide)
    graph.insert_before(graph[0], cast)
    return wide


def _retarget_cast(node: ir.Node) -> None:
    target = node.attributes.get("to") if node.op_type == "Cast" else None
    if target is not None and ir.DataType(target.as_int()) in _NARROW:
        node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT.value)


def _widened(dtype: ir.DataType | None) -> ir.DataType | None:
    return ir.DataType.FLOAT if dtype in _NARROW else dtype


def _nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == DOMAIN and node.op_type == op_type]


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise RuntimeError("a neutral op lacks an input")
    return value


def _stored(value: ir.Value) -> ir.Value:
    """Return the initialiser behind a value, looking through a widening cast."""
    producer = value.producer()
    return value if producer is None else _given(producer.inputs[0])


def _stem(value: ir.Value) -> str:
    return str(value.name).rpartition(".")[0]


def _data(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise RuntimeError(f"{value.name} has no weights")
    return value.const_value


def _drop_unused(graph: ir.Graph, values: Iterable[ir.Value]) -> None:
    """Remove initialisers, and the casts that widened them, which nothing reads any more."""
    for value in values:
        stored = _stored(value)
        if value is not stored and not value.uses():
            graph.remove(_given_node(value), safe=True)
        if not stored.uses():
            graph.initializers.pop(str(stored.name))


def _given_node(value: ir.Value) -> ir.Node:
    producer = value.producer()
    if producer is None:
        raise RuntimeError(f"{value.name} has no producer")
    return producer


def _as_bits(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    """View a tensor's memory as unsigned integers: values are moved, never read."""
    array = tensor.numpy()
    return array.view(f"u{array.dtype.itemsize}")
