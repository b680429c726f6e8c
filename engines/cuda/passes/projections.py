"""The two products of a layer that give queries and latent rows, with what follows, as traced."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from export.graph.edits import given
from runtime.names import MICROSOFT

from ...passes.graph_edits import producer_of


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """A `RotaryEmbedding`, between casts to and from the type in which it turns, if need be."""

    node: ir.Node
    source: ir.Value
    """Rows (B, S, heads * size) before the cast."""
    result: ir.Value
    """The same behind the cast back."""

    @property
    def heads(self) -> int:
        """How many are turned."""
        return self.node.attributes.get_int("num_heads", 0)

    @property
    def type(self) -> ir.DataType:
        """In which it turns."""
        return given(given(self.node.inputs[0]).dtype)


@dataclass(frozen=True, kw_only=True)
class Projections:
    """Both products and the values made of them, which nothing else reads.

    Of the latent product (B, S, R + rope), rows 0 to R are `latent_rows`, and the others are turned
    as `key`. That of queries is brought to (B, S, H, nope + rope): `plain`, and `turned` as rows.
    """

    latent: ir.Node
    query: ir.Node
    latent_rows: ir.Value
    plain: ir.Value
    key: Rotation
    turned: Rotation
    first_product: ir.Node
    first_rotation: ir.Node

    @property
    def rank(self) -> int:
        """R."""
        return _size(self.latent_rows)

    @property
    def rope(self) -> int:
        """Of a head."""
        return _size(self.key.source)

    @property
    def nope(self) -> int:
        """Of a head."""
        return _size(self.plain)

    @property
    def heads(self) -> int:
        """H."""
        return self.turned.heads

    @property
    def attributes(self) -> dict[str, Any]:
        """What both products have in common."""
        return _form(self.latent)


def projections(model: ir.Model) -> Iterator[Projections]:
    """Find pairs of products of the same input, with codes of the same form."""
    order = {node: place for place, node in enumerate(model.graph)}
    found = [_rotation(node) for node in model.graph if node.op_type == "RotaryEmbedding"]
    turns = [one for one in found if one is not None]
    for key in turns:
        for turned in turns:
            pair = _pair(key, turned, order)
            if pair is not None:
                yield pair


def _rotation(node: ir.Node) -> Rotation | None:
    source, result = given(node.inputs[0]), node.outputs[0]
    cast = producer_of(source, "Cast")
    if cast is not None:
        users = _users(result)
        if len(users) != 1 or users[0].op_type != "Cast":
            return None
        source, result = given(cast.inputs[0]), users[0].outputs[0]
    is_known = node.domain == "" and len(node.inputs) == 3 and source.dtype == result.dtype
    return Rotation(node=node, source=source, result=result) if is_known else None


def _pair(key: Rotation, turned: Rotation, order: dict[ir.Node, int]) -> Projections | None:
    row, heads = _half(key.source), _reshaped(turned.source, 4, 3)
    part = None if heads is None else _half(heads)
    if key.heads != 1 or row is None or part is None or not _turn_alike(key, turned):
        return None
    both, plain_and_turned = row[0], part[0]
    flat = _reshaped(plain_and_turned, 3, 4)
    latent = both.producer()
    query = None if flat is None else flat.producer()
    if flat is None or latent is None or query is None or not _read_alike(latent, query):
        return None
    if _users(flat) != [plain_and_turned.producer()]:
        return None
    products, rotations = (latent, query), (key.node, turned.node)
    pair = Projections(
        latent=latent,
        query=query,
        latent_rows=row[1],
        plain=part[1],
        key=key,
        turned=turned,
        first_product=min(products, key=order.__getitem__),
        first_rotation=min(rotations, key=order.__getitem__),
    )
    return pair if _fits(pair, both, plain_and_turned) else None


def _fits(pair: Projections, both: ir.Value, by_head: ir.Value) -> bool:
    """Whether sizes are what they should be; halves of bytes are not moved."""
    head_size = pair.nope + pair.rope
    return (
        min(pair.rank, pair.nope, pair.rope) > 0
        and _size(both) == pair.rank + pair.rope
        and given(by_head.shape)[2:] == (pair.heads, head_size)
        and _size(pair.turned.source) == pair.heads * pair.rope
        and pair.query.attributes.get_int("N", 0) == pair.heads * head_size
        and all(size % 2 == 0 for size in (pair.rank, pair.nope, pair.rope))
    )


def _turn_alike(first: Rotation, second: Rotation) -> bool:
    """Whether two rotations differ in the number of heads and in what they turn, and no more."""
    forms = [
        {name: one.value for name, one in turn.node.attributes.items() if name != "num_heads"}
        for turn in (first, second)
    ]
    inputs = [turn.node.inputs[1:] for turn in (first, second)]
    is_alike = forms[0] == forms[1] and inputs[0] == inputs[1]
    return is_alike and first.type == second.type and first.source.dtype == second.source.dtype


def _read_alike(first: ir.Node, second: ir.Node) -> bool:
    """Whether both multiply the same by codes of the same form, and by nothing else."""
    if any((one.domain, one.op_type) != (MICROSOFT, "MatMulNBits") for one in (first, second)):
        return False
    if first is second or len(first.inputs) != 3 or len(second.inputs) != 3:
        return False
    scales = [given(one.inputs[2]).dtype for one in (first, second)]
    return (
        first.inputs[0] is second.inputs[0]
        and _form(first) == _form(second)
        and scales[0] == scales[1]
    )


def _form(product: ir.Node) -> dict[str, Any]:
    return {name: one.value for name, one in product.attributes.items() if name != "N"}


def _half(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Find what a value is the end of, if it is cut in two and no more: the whole, the rest."""
    node = producer_of(value, "Slice")
    if node is None:
        return None
    whole = given(node.inputs[0])
    others = [one for one in _users(whole) if one is not node]
    if len(others) != 1 or others[0].op_type != "Slice":
        return None
    end, start = _cut(node), _cut(others[0])
    if end is None or start is None or start != (0, end[0]) or end[1] < _size(whole):
        return None
    return whole, others[0].outputs[0]


def _cut(node: ir.Node) -> tuple[int, int] | None:
    """Read where a cut of the last axis starts and ends."""
    tensors = [ir.convenience.get_const_tensor(given(value)) for value in node.inputs[1:]]
    shape = given(node.inputs[0]).shape
    if len(tensors) != 4 or any(one is None or one.size != 1 for one in tensors) or shape is None:
        return None
    start, end, axis, step = (int(given(one).numpy().item()) for one in tensors)
    is_plain = axis in (-1, len(shape) - 1) and step == 1 and start >= 0 and end >= 0
    return (start, end) if is_plain else None


def _reshaped(value: ir.Value, rank: int, to_rank: int) -> ir.Value | None:
    """Find what a `Reshape` reads that parts heads or brings them together: (B, S, ...) both."""
    node = producer_of(value, "Reshape")
    if node is None or _users(given(node.inputs[0])) != [node]:
        return None
    source = given(node.inputs[0])
    if source.shape is None or value.shape is None:
        return None
    is_alike = (len(source.shape), len(value.shape)) == (rank, to_rank)
    return source if is_alike and source.shape[:2] == value.shape[:2] else None


def _size(value: ir.Value) -> int:
    """Give the last size; 0 if it is not fixed."""
    size = value.shape[-1] if value.shape else None
    return size if isinstance(size, int) else 0


def _users(value: ir.Value) -> list[ir.Node]:
    """List who reads a value; none of an output of the graph, which others read as well."""
    return [] if value.is_graph_output() else [node for node, _ in value.uses()]
