"""The chosen experts of each token, gathered: for a few tokens, which need few of them.

Reads the matrices of N * K experts, one copy for each time that one is chosen; `expert_costs` says
when that is less than all.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.edits import given
from runtime.names import EXPERTS_DOWN, EXPERTS_UP

from ...lowering import Lowered
from ...passes.graph_edits import neutral_nodes
from ...passes.routed_experts import unpaired
from .bodies import replace_by_function
from .gathered_bodies import byte_table, gathered_down, gathered_up, numbers_type
from .options import WeightsPlace
from .stored_experts import ExpertsPair, Storage, StoredMatrix, expert_pairs

_STEPS: Storage = "fp8"
"""How NVFP4 stores its scales."""


class GatheredExperts:
    """Multiply each token with the matrices of its own experts only."""

    name = "gathered-experts"

    def __init__(self, weights: WeightsPlace) -> None:
        self._weights = weights

    def requires(self, model: ir.Model) -> str | None:
        """The two halves come in pairs, and codes are inputs, for constants are not gathered."""
        return unpaired(model) or ungatherable(model, self._weights)

    def run(self, lowered: Lowered) -> Lowered:
        """Replace both halves of each pair; graphs without experts stay as they are."""
        for pair in expert_pairs(lowered.model):
            make_gathered(lowered.model, pair)
        common.RemoveUnusedNodesPass()(lowered.model)  # what all codes of a stack mean
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """No half is left."""
        left = [*neutral_nodes(model, EXPERTS_UP), *neutral_nodes(model, EXPERTS_DOWN)]
        return f"{len(left)} halves left" if left else None


def ungatherable(model: ir.Model, weights: WeightsPlace) -> str | None:
    """Say which codes TensorRT would not gather: constants are for dequantisation alone."""
    storages = {one.storage for pair in expert_pairs(model) for one in pair.matrices}
    codes = sorted(storages - {"plain"})
    is_constant = weights == "embedded" and codes
    return f"{codes[0]} codes are gathered from inputs, not from constants" if is_constant else None


def make_gathered(model: ir.Model, pair: ExpertsPair) -> None:
    """Let a pair read what is stored of the chosen experts, not what all of it means."""
    gate, up, down = pair.gate, pair.up, pair.down
    _exchange(model, pair.up_node, gathered_up(gate, up), (gate, up))
    _exchange(model, pair.down_node, gathered_down(down), (down,))


def _exchange(
    model: ir.Model, node: ir.Node, body: str, matrices: tuple[StoredMatrix, ...]
) -> None:
    """Put a gathering op in the place of a node, whose last inputs are matrices."""
    others = list(node.inputs)[: -len(matrices)]
    base = given(matrices[0].meaning.dtype)
    stored = [value for one in matrices for value in _gatherable(model.graph, one, base)]
    replace_by_function(model, node, body, [*others, *stored])


def _gatherable(graph: ir.Graph, matrix: StoredMatrix, base: ir.DataType) -> list[ir.Value]:
    """List what the body reads of a matrix: codes, scale, whole, tables."""
    numbers = numbers_type(matrix, base)
    codes = byte_table(matrix.storage)
    if codes is None:
        return matrix.given_values
    stored, *rest = matrix.given_values
    values = [as_bytes(graph, stored), *rest, _table(graph, matrix.storage, codes, numbers)]
    steps = byte_table(_STEPS)
    if matrix.whole is not None and steps is not None:
        values[1] = as_bytes(graph, values[1])
        values.append(_table(graph, _STEPS, steps, numbers))
    return values


def as_bytes(graph: ir.Graph, codes: ir.Value) -> ir.Value:
    """Give another view of codes, as int8 of whole bytes, under the name `NAME.bytes`."""
    name = f"{codes.name}.bytes"
    if name in graph.initializers:
        return graph.initializers[name]
    *outer, last = given(codes.shape).numpy()
    shape = ir.Shape([*outer, last * int(given(codes.dtype).bitwidth) // 8])
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT8), shape=shape)
    stored = codes.const_value
    if isinstance(stored, ir.ExternalTensor):
        value.const_value = ir.ExternalTensor(
            stored.location,
            stored.offset,
            stored.length,
            ir.DataType.INT8,
            shape=shape,
            name=name,
            base_dir=stored.base_dir,
        )
    elif stored is not None:
        raise RuntimeError(f"{codes.name} does not lie in a weights file")
    graph.initializers.add(value)
    return value


def _table(graph: ir.Graph, storage: str, rows: np.ndarray, dtype: ir.DataType) -> ir.Value:
    """Register a table of bytes once for each type."""
    name = f"{storage}_numbers_{dtype.name.lower()}"
    if name not in graph.initializers:
        table = ir.tensor(rows.astype(dtype.numpy()), dtype=dtype, name=name)
        graph.initializers.add(
            ir.Value(
                name=name, type=ir.TensorType(dtype), shape=ir.Shape(rows.shape), const_value=table
            )
        )
    return graph.initializers[name]
