"""Attention over an int8 latent cache as one op, so that a kernel can work on the codes.

From what `q_proj` and `kv_a_proj_with_mqa` give to what `o_proj` reads. The body is the part of the
graph that the op stands for, as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from export.graph.edits import given
from runtime import names
from runtime.names import (
    CACHED_ATTENTION,
    CPU_DOMAIN,
    LATENT_ATTENTION,
    READS_LENGTHS,
    output_of,
)

from ...lowering import Lowered
from ...passes.graph_edits import neutral_nodes, without_cast
from .region import Region, cut_out

_CACHE = (names.CACHE, names.CACHE_KEYS, names.CACHE_SCALES)


@dataclass(frozen=True, kw_only=True)
class CacheAttention:
    """Cut attention out of a layer with an int8 cache, and call it as `CachedAttention`.

    Our kernel of it rounds queries and weights to 8 bits, so that graphs whose activations may not
    be rounded stay as they are.
    """

    may_round: bool

    @property
    def name(self) -> str:
        """Tells whether anything is cut out."""
        return READS_LENGTHS if self.may_round else f"no-{READS_LENGTHS}"

    def requires(self, model: ir.Model) -> str | None:
        """A layer with an int8 cache has one attention over it."""
        found = len(neutral_nodes(model, LATENT_ATTENTION))
        return f"{found} {LATENT_ATTENTION}" if self._is_for(model) and found != 1 else None

    def run(self, lowered: Lowered) -> Lowered:
        """Cut it out; other graphs stay as they are."""
        model = lowered.model
        if self._is_for(model):
            cut_out(model, _region(model), CPU_DOMAIN, CACHED_ATTENTION)
        return lowered

    def ensures(self, model: ir.Model) -> str | None:
        """Nothing else in the graph reads the cache."""
        if not self._is_for(model):
            return None
        readers = {user.op_type for name in _CACHE for user, _ in _tensor(model, name).uses()}
        return None if readers == {CACHED_ATTENTION} else f"{sorted(readers)} read the cache"

    def _is_for(self, model: ir.Model) -> bool:
        return self.may_round and any(
            value.name == names.CACHE_SCALES for value in model.graph.inputs
        )


def _tensor(model: ir.Model, name: str) -> ir.Value:
    return next(value for value in model.graph.inputs if value.name == name)


def _region(model: ir.Model) -> Region:
    graph = model.graph
    (attention,) = neutral_nodes(model, LATENT_ATTENTION)
    written = {str(value.name): value for value in graph.outputs}
    by_value = _reader(attention.outputs[0], "Transpose", "MatMul")
    values = _reader(by_value.outputs[0], "Transpose", "Reshape").outputs[0]
    absorbed = _behind(attention.inputs[0], "Concat", "Transpose")
    by_key = given(given(absorbed).producer())
    query = _behind(by_key.inputs[0], "Transpose", "Slice", "Reshape")
    codes = given(_writer(written[output_of(names.CACHE)]).inputs[1])
    latent = _behind(codes, "QuantizeLinear", "Slice", "Unsqueeze", "Concat")
    norm = given(latent.producer())
    turning = next(node for node in graph if node.op_type == "Cos")
    angles = given(given(turning.inputs[0]).producer())
    return Region(
        inputs={
            "query": query,
            "rows": _behind(norm.inputs[0], "Slice"),
            "norm": given(norm.inputs[1]),
            "key": without_cast(given(by_key.inputs[1])),
            "value": without_cast(given(by_value.inputs[1])),
            "frequencies": given(angles.inputs[1]),
            **{name: _tensor(model, name) for name in (*_CACHE, names.LENGTHS)},
        },
        outputs=[values, *(written[output_of(name)] for name in _CACHE)],
        stand_ins={_tensor(model, names.HIDDEN): query},
        attributes=_attributes(attention, norm),
    )


def _attributes(attention: ir.Node, norm: ir.Node) -> Mapping[str, ir.Attr]:
    return {"scale": attention.attributes["scale"], "epsilon": norm.attributes["epsilon"]}


def _writer(value: ir.Value) -> ir.Node:
    return given(value.producer())


def _behind(value: ir.Value | None, *op_types: str) -> ir.Value:
    """Follow first inputs back through nodes of these types."""
    for op_type in op_types:
        node = given(given(value).producer())
        if node.op_type != op_type:
            raise RuntimeError(f"{node.name} is {node.op_type}, expected {op_type}")
        value = node.inputs[0]
    return given(value)


def _reader(value: ir.Value, *op_types: str) -> ir.Node:
    """Follow the only readers forward through nodes of these types; return the last."""
    node = None
    for op_type in op_types:
        ((node, _),) = value.uses()
        if node.op_type != op_type:
            raise RuntimeError(f"{node.name} is {node.op_type}, expected {op_type}")
        value = node.outputs[0]
    return given(node)
