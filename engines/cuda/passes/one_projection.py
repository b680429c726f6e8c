"""What attention makes of a token's hidden state, queries and latent row, as one product.

`kv_a_proj_with_mqa` and `q_proj` read the same. Their outputs lie behind each other in one matrix,
those of all heads that turn with the position beside those of the key, so that one product, one cut
and one rotation do for both:

    latent (R) | plain parts of H heads (H * nope) | turned ones of key and heads ((1 + H) * rope)

Codes and scales of an output stay what they are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes import common

from export.graph.weights_file import Values
from runtime.names import (
    MICROSOFT,
    block_scales_name,
    blocks_name,
    joint_name,
    parameters_in_blocks,
)

from ...lowering import Lowered
from ...passes.blocks import BlockCodes, BlockScales
from ...passes.graph_edits import ints, register
from .projections import Projections, projections


class OneProjection:
    """Make one `MatMulNBits` of the two of a layer, if their codes are of the same form."""

    name = "one-projection"

    def requires(self, model: ir.Model) -> str | None:
        """Accept any graph; one without such a pair stays as it is."""
        del model
        return None

    def run(self, lowered: Lowered) -> Lowered:
        """Replace both products, what cuts their results, and both rotations."""
        model = lowered.model
        weights = {one.name: one for one in lowered.new_weights}
        for pair in list(projections(model)):
            made = _joint(pair, weights)
            for value in (*pair.latent.inputs[1:], *pair.query.inputs[1:]):
                assert value is not None
                weights.pop(str(value.name))
            weights |= {one.name: one for one in made}
            _replace(model.graph, pair, made)
            common.RemoveUnusedNodesPass()(model)
        return replace(lowered, new_weights=tuple(weights.values()))

    def ensures(self, model: ir.Model) -> str | None:
        """No pair is left."""
        left = [pair.query.name for pair in projections(model)]
        return f"products of the same input left: {left[:3]}" if left else None


def _joint(pair: Projections, weights: Mapping[str, Values]) -> tuple[BlockCodes, BlockScales]:
    """Lay the outputs of both behind each other; nothing is read yet."""
    (latent, latent_scales), (query, query_scales) = (
        _blocks(node, weights) for node in (pair.latent, pair.query)
    )
    packed, steps = latent.matrices[0][0], latent_scales.matrices[0][0]
    query_packed, query_steps = query.matrices[0][0], query_scales.matrices[0][0]
    codes, scales = [], []
    for of_query, part in _order(pair):
        in_bytes = slice(part.start * latent.bits // 8, part.stop * latent.bits // 8)
        codes.append(((query_packed if of_query else packed)[:, in_bytes],))
        scales.append(((query_steps if of_query else steps)[:, part],))
    names = [*parameters_in_blocks(latent.name), *parameters_in_blocks(query.name)]
    outputs = latent.shape[0] + query.shape[0]
    return (
        replace(
            latent,
            name=blocks_name(joint_name(names)),
            shape=(outputs, *latent.shape[1:]),
            matrices=tuple(codes),
        ),
        replace(
            latent_scales,
            name=block_scales_name(joint_name(names)),
            shape=(outputs, *latent_scales.shape[1:]),
            matrices=tuple(scales),
        ),
    )


def _blocks(node: ir.Node, weights: Mapping[str, Values]) -> tuple[BlockCodes, BlockScales]:
    codes, scales = (weights[str(value.name)] for value in node.inputs[1:] if value is not None)
    assert isinstance(codes, BlockCodes), node.name
    assert isinstance(scales, BlockScales), node.name
    return codes, scales


def _order(pair: Projections) -> Iterator[tuple[bool, slice]]:
    """Tell which outputs come after which: whether those of `q_proj`, and which of them."""
    head_size = pair.nope + pair.rope
    begins = range(0, pair.heads * head_size, head_size)
    yield False, slice(0, pair.rank)
    for begin in begins:
        yield True, slice(begin, begin + pair.nope)
    yield False, slice(pair.rank, pair.rank + pair.rope)
    for begin in begins:
        yield True, slice(begin + pair.nope, begin + head_size)


def _replace(graph: ir.Graph, pair: Projections, weights: tuple[BlockCodes, BlockScales]) -> None:
    plain_size = pair.heads * pair.nope
    attributes = {**pair.attributes, "N": weights[0].shape[0]}
    tape = ir.tape.Tape()
    inputs = [pair.latent.inputs[0], *register(graph, weights)]
    made = tape.op("MatMulNBits", inputs, attributes, domain=MICROSOFT)
    parts = _cut(tape, made, [pair.rank, plain_size, (pair.heads + 1) * pair.rope])
    latent, plain, turning = parts
    by_head = tape.op("Reshape", [plain, ints(tape, 0, 0, pair.heads, pair.nope)])
    graph.insert_before(pair.first_product, tape.nodes)
    turns = ir.tape.Tape()
    key, query = _cut(turns, _turned(turns, pair, turning), [pair.rope, pair.heads * pair.rope])
    graph.insert_before(pair.first_rotation, turns.nodes)
    replaced = {
        latent: pair.latent_rows,
        by_head: pair.plain,
        key: pair.key.result,
        query: pair.turned.result,
    }
    for new, old in replaced.items():
        new.name, new.type, new.shape = old.name, old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new)


def _turned(tape: ir.tape.Tape, pair: Projections, rows: ir.Value) -> ir.Value:
    """Turn key and heads at once, in the type in which they are turned."""
    node = pair.key.node
    narrow = pair.latent_rows.dtype
    assert narrow is not None
    if pair.key.type != narrow:
        rows = tape.op("Cast", [rows], {"to": pair.key.type.value})
    attributes = {**node.attributes, "num_heads": ir.AttrInt64("num_heads", pair.heads + 1)}
    rows = tape.op(node.op_type, [rows, *node.inputs[1:]], attributes)
    return rows if pair.key.type == narrow else tape.op("Cast", [rows], {"to": narrow.value})


def _cut(tape: ir.tape.Tape, rows: ir.Value, sizes: list[int]) -> list[ir.Value]:
    made = tape.op_multi_out(
        "Split", [rows, ints(tape, *sizes)], {"axis": -1}, num_outputs=len(sizes)
    )
    return list(made)
