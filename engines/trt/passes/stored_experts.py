"""How an expert matrix is stored behind the value that the neutral graph multiplies with."""

import math
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import EXPERTS_DOWN, EXPERTS_UP

from ...passes.graph_edits import neutral_nodes, static_size
from .expert_costs import ExpertStack

Storage = Literal["plain", "int8", "fp8", "int4", "nvfp4"]

_STORAGES: dict[ir.DataType, Storage] = {
    ir.DataType.FLOAT: "plain",
    ir.DataType.FLOAT16: "plain",
    ir.DataType.BFLOAT16: "plain",
    ir.DataType.INT8: "int8",
    ir.DataType.FLOAT8E4M3FN: "fp8",
    ir.DataType.INT4: "int4",
    ir.DataType.FLOAT4E2M1: "nvfp4",
}


@dataclass(frozen=True, kw_only=True)
class StoredMatrix:
    """A stack of matrices (E, in, out) as the weights file holds it."""

    meaning: ir.Value
    """What the graph multiplies with, in the graph's type."""
    codes: ir.Value
    """The stack itself: codes, or plain numbers."""
    scale: ir.Value | None
    """(E, in / group, out), or None where the numbers are plain."""
    whole: ir.Value | None
    """One number that all scales are multiplied by: NVFP4 only."""

    @property
    def storage(self) -> Storage:
        """Format of the codes."""
        return _STORAGES[given(self.codes.dtype)]

    @property
    def given_values(self) -> list[ir.Value]:
        """What of codes, scale and whole there is, in this order."""
        return [value for value in (self.codes, self.scale, self.whole) if value is not None]

    @classmethod
    def behind(cls, meaning: ir.Value) -> "StoredMatrix":
        """Follow a value back to the initialisers that it is made of."""
        node = meaning.producer()
        if node is not None and node.op_type == "Cast":
            node = given(node.inputs[0]).producer()
        if node is None:
            return cls(meaning=meaning, codes=meaning, scale=None, whole=None)
        if node.op_type != "DequantizeLinear":
            raise RuntimeError(f"{meaning.name}: made by {node.op_type}, not stored")
        codes, scale = (given(value) for value in node.inputs[:2])
        wide = scale.producer()
        if wide is None:
            return cls(meaning=meaning, codes=codes, scale=scale, whole=None)
        stored, whole = (given(value) for value in wide.inputs[:2])
        return cls(meaning=meaning, codes=codes, scale=stored, whole=whole)


@dataclass(frozen=True, kw_only=True)
class ExpertsPair:
    """ExpertsUp and the ExpertsDown behind it; between them, what rounds the inner values."""

    up_node: ir.Node
    down_node: ir.Node

    @property
    def gate(self) -> StoredMatrix:
        """(E, C, I)."""
        return StoredMatrix.behind(given(self.up_node.inputs[2]))

    @property
    def up(self) -> StoredMatrix:
        """(E, C, I)."""
        return StoredMatrix.behind(given(self.up_node.inputs[3]))

    @property
    def down(self) -> StoredMatrix:
        """(E, I, C)."""
        return StoredMatrix.behind(given(self.down_node.inputs[3]))

    @property
    def matrices(self) -> tuple[StoredMatrix, StoredMatrix, StoredMatrix]:
        """Gate, up and down."""
        return self.gate, self.up, self.down

    @property
    def stack(self) -> ExpertStack:
        """The pair's sizes, as arithmetic needs them."""
        meaning = self.gate.meaning
        num_experts = static_size(meaning, 0)
        stored = sum(_bytes(value) for one in self.matrices for value in one.given_values)
        return ExpertStack(
            num_experts=num_experts,
            num_chosen=static_size(given(self.up_node.inputs[1]), 1),
            numbers=3 * static_size(meaning, 1) * static_size(meaning, 2),
            stored_bytes=stored // num_experts,
            number_bytes=given(meaning.dtype).bitwidth // 8,
        )

    def between(self) -> list[ir.Node]:
        """List the nodes that round the inner values, in the order of the graph."""
        start, graph = self.up_node.outputs[0], given(self.up_node.graph)
        reached, found = {start}, []
        for node in graph:
            if node is not self.down_node and reached.intersection(node.inputs):
                if node.op_type not in _ROUNDING:
                    raise RuntimeError(f"{node.name}: {node.op_type} reads the inner values")
                found.append(node)
                reached.update(node.outputs)
            if node is self.down_node:
                return found
        raise RuntimeError(f"{self.down_node.name} does not follow {self.up_node.name}")


def _bytes(value: ir.Value) -> int:
    sizes = given(value.shape).numpy()
    return math.prod(sizes) * int(given(value.dtype).bitwidth) // 8


_ROUNDING = {
    "Abs",
    "Cast",
    "DequantizeLinear",
    "Div",
    "Max",
    "QuantizeLinear",
    "ReduceMax",
    "TRT_FP4DynamicQuantize",
}
"""Ops that the export rounds with: by element, by tensor, or by blocks of the last axis."""


def expert_pairs(model: ir.Model) -> list[ExpertsPair]:
    """List the pairs of a graph, one for each MoE layer in it."""
    ups, downs = (neutral_nodes(model, op_type) for op_type in (EXPERTS_UP, EXPERTS_DOWN))
    return [ExpertsPair(up_node=a, down_node=b) for a, b in zip(ups, downs, strict=True)]
