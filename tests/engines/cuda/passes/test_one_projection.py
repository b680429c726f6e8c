"""Queries and latent rows as one product: the same numbers to the bit, and fewer nodes.

What a graph means is written out in numpy, in float64.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from engines.cuda.passes.coded_products import CodedProducts
from engines.cuda.passes.one_projection import OneProjection
from engines.lowering import lower
from runtime.names import parameters_in_blocks
from tests.engines.passes.coded_graphs import Array, Coded, build, coded, lowered, op_types
from tests.stock_runtime import error, run

WIDTH, RANK, ROPE, HEADS, NOPE = 64, 24, 8, 3, 10
BATCH, TOKENS = 2, 5
EXACT = 1e-5
HALF = 4e-3
"""Codes, and a rotation, meet rows of 11 bits."""
LATENT, QUERY = RANK + ROPE, HEADS * (NOPE + ROPE)
GRAPH = f"""g (float[B, S, {WIDTH}] x, float[B, S, {ROPE // 2}] cos, float[B, S, {ROPE // 2}] sin)
    => (float[B, S, {RANK + ROPE + QUERY}] out) {{
    DEQUANTISED
    latent = MatMul (x, kv)
    row = Slice (latent, zero, rank, two, one)
    key = Slice (latent, rank, end, two, one)
    KEY
    flat = MatMul (x, q)
    by_head = Reshape (flat, heads)
    turning = Slice (by_head, nope, end, three, one)
    rows = Reshape (turning, turned_size)
    QUERY
    turned_by_head = Reshape (turned, heads)
    plain = Slice (by_head, zero, nope, three, one)
    query = Concat <axis = -1> (plain, turned_by_head)
    query_rows = Reshape (query, rows_of_all)
    out = Concat <axis = -1> (row, turned_key, query_rows)
}}"""
ROTATE = "{0} = RotaryEmbedding <interleaved = 1, num_heads = {2}> ({1}, cos, sin)"
CONVERTED = """wide_{1} = Cast <to = 1> ({1})
    wide_{0} = RotaryEmbedding <interleaved = 1, num_heads = {2}> (wide_{1}, cos, sin)
    {0} = Cast <to = 10> (wide_{0})"""
SHAPES = {
    "latent": LATENT,
    "row": RANK,
    "key": ROPE,
    "turned_key": ROPE,
    "flat": QUERY,
    "by_head": (HEADS, NOPE + ROPE),
    "turning": (HEADS, ROPE),
    "rows": HEADS * ROPE,
    "turned": HEADS * ROPE,
    "turned_by_head": (HEADS, ROPE),
    "plain": (HEADS, NOPE),
}


def matrices(*, bits: int, base: type) -> dict[str, Coded]:
    group = 32 if bits == 4 else None
    return {
        name: coded(seed, (WIDTH, outputs), bits=bits, group=group, base=base)
        for seed, (name, outputs) in enumerate((("kv", LATENT), ("q", QUERY)))
    }


def graph(found: dict[str, Coded], text: str = GRAPH, *, half: bool = False) -> ir.Model:
    """As a trace leaves it: values have types and shapes."""
    rotate = CONVERTED if half else ROTATE
    text = text.replace("KEY", rotate.format("turned_key", "key", 1))
    text = text.replace("QUERY", rotate.format("turned", "rows", HEADS))
    if half:
        text = text.replace(f"float[B, S, {WIDTH}]", f"float16[B, S, {WIDTH}]")
        text = text.replace(f"=> (float[B, S, {RANK}", f"=> (float16[B, S, {RANK}")
    sizes = {
        "zero": [0],
        "one": [1],
        "two": [2],
        "three": [3],
        "rank": [RANK],
        "nope": [NOPE],
        "end": [np.iinfo(np.int64).max],
        "heads": [0, 0, HEADS, -1],
        "turned_size": [0, 0, HEADS * ROPE],
        "rows_of_all": [0, 0, -1],
    }
    stored = {name: np.array(values, dtype=np.int64) for name, values in sizes.items()}
    model = build(text, found, **stored)
    narrow = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
    for node in model.graph:
        for value in node.outputs:
            name = str(value.name)
            size = SHAPES.get(name.removeprefix("wide_"))
            last = size if isinstance(size, tuple) else (size,)
            is_wide = name.startswith("wide_")
            value.type = ir.TensorType(ir.DataType.FLOAT if is_wide else narrow)
            value.shape = None if size is None else ir.Shape(["B", "S", *last])
    return model


def values(base: type = np.float32) -> dict[str, Array]:
    random = np.random.default_rng(5)
    angles = random.uniform(0, 6, (BATCH, TOKENS, ROPE // 2)).astype(np.float32)
    x: Array = random.standard_normal((BATCH, TOKENS, WIDTH)).astype(base)
    return {"x": x, "cos": np.cos(angles), "sin": np.sin(angles)}


def turned(rows: Array, fed: dict[str, Array]) -> Array:
    """Pairs of neighbours (..., ROPE) turned by their angles."""
    pairs: Array = rows.reshape(*rows.shape[:-1], -1, 2)
    axes = (slice(None), slice(None), *[None] * (rows.ndim - 3))
    cos, sin = fed["cos"][axes].astype(np.float64), fed["sin"][axes].astype(np.float64)
    a, b = pairs[..., 0], pairs[..., 1]
    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(rows.shape)


def meaning(found: dict[str, Coded], fed: dict[str, Array]) -> Array:
    x = fed["x"].astype(np.float64)
    latent = x @ found["kv"].meaning
    query = (x @ found["q"].meaning).reshape(BATCH, TOKENS, HEADS, NOPE + ROPE)
    query[..., NOPE:] = turned(query[..., NOPE:], fed)
    key = turned(latent[..., RANK:], fed)
    flat = query.reshape(BATCH, TOKENS, -1)
    return np.concatenate([latent[..., :RANK], key, flat], axis=-1)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_numbers_are_those_of_two_products_to_the_bit(bits: int) -> None:
    found = matrices(bits=bits, base=np.float32)
    before = lowered(graph(found), [CodedProducts()])
    made = lowered(graph(found), [CodedProducts(), OneProjection()])
    np.testing.assert_array_equal(run(made, values()), run(before, values()))
    assert error(run(made, values()), meaning(found, values())) < EXACT


@pytest.mark.parametrize("bits", [4, 8])
def test_half_precision_turns_in_fp32_all_the_same(bits: int) -> None:
    found = matrices(bits=bits, base=np.float16)
    fed = values(np.float16)
    before = lowered(graph(found, half=True), [CodedProducts()])
    made = lowered(graph(found, half=True), [CodedProducts(), OneProjection()])
    assert op_types(made).count("Cast") == 2
    np.testing.assert_array_equal(run(made, fed), run(before, fed))
    assert error(run(made, fed).astype(np.float64), meaning(found, fed)) < HALF


def test_one_product_one_cut_and_one_rotation_are_left() -> None:
    made = lowered(graph(matrices(bits=4, base=np.float32)), [CodedProducts(), OneProjection()])
    kinds = op_types(made)
    assert [kinds.count(one) for one in ("MatMulNBits", "Split", "Slice")] == [1, 2, 0]
    (turn,) = (node for node in made.graph if node.op_type == "RotaryEmbedding")
    assert turn.attributes["num_heads"].as_int() == HEADS + 1
    assert turn.attributes["interleaved"].as_int() == 1


def test_weights_are_those_of_both_and_their_name_tells_it() -> None:
    model = graph(matrices(bits=4, base=np.float32))
    before = lower(model.clone(), [CodedProducts()]).new_weights
    after = lower(model, [CodedProducts(), OneProjection()])
    codes, scales = after.new_weights
    assert parameters_in_blocks(codes.name) == ["kv_codes", "q_codes"]
    assert {codes.name, scales.name} <= after.model.graph.initializers.keys()
    assert codes.shape[0] == scales.shape[0] == LATENT + QUERY
    sizes = [
        sum(len(block) for one in some for block in one.blocks())
        for some in (before, (codes, scales))
    ]
    assert sizes[0] == sizes[1]


def other_group(found: dict[str, Coded]) -> dict[str, Coded]:
    return {**found, "q": coded(9, (WIDTH, QUERY), bits=4, group=64)}


def other_bits(found: dict[str, Coded]) -> dict[str, Coded]:
    return {**found, "q": coded(9, (WIDTH, QUERY), bits=8, group=32)}


@pytest.mark.parametrize("change", [other_group, other_bits])
def test_codes_of_another_form_stay_apart(
    change: Callable[[dict[str, Coded]], dict[str, Coded]],
) -> None:
    found = change(matrices(bits=4, base=np.float32))
    made = lowered(graph(found), [CodedProducts(), OneProjection()])
    assert op_types(made).count("MatMulNBits") == 2
    assert error(run(made, values()), meaning(found, values())) < EXACT


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("KEY", "turned_key = RotaryEmbedding <num_heads = 1> (key, cos, sin)"),
        ("KEY", "turned_key = RotaryEmbedding <interleaved = 1, num_heads = 1> (key, sin, cos)"),
        ("flat = MatMul (x, q)", "other = Neg (x)\n flat = MatMul (other, q)"),
        ("row, turned_key, query_rows)", "row, key, query_rows)"),
        ("key = Slice (latent, rank, end, two, one)", "key = Slice (latent, zero, rope, two, one)"),
    ],
)
def test_what_follows_the_products_in_another_way_stays(old: str, new: str) -> None:
    assert old in GRAPH
    found = matrices(bits=4, base=np.float32)
    model = graph(found, GRAPH.replace(old, new))
    if "rope" in new:
        rope = ir.Value(name="rope", const_value=ir.tensor([ROPE], name="rope"))
        rope.type, rope.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
        model.graph.initializers.add(rope)
        (cut,) = (node for node in model.graph if node.outputs[0].name == "key")
        cut.replace_input_with(2, rope)
    before = lowered(model, [CodedProducts()])
    made = lowered(model, [CodedProducts(), OneProjection()])
    assert op_types(made) == op_types(before)


def test_a_product_that_something_else_reads_stays() -> None:
    model = graph(matrices(bits=4, base=np.float32))
    (flat,) = (node.outputs[0] for node in model.graph if node.outputs[0].name == "flat")
    model.graph.outputs.append(flat)
    made = lowered(model, [CodedProducts(), OneProjection()])
    assert op_types(made).count("MatMulNBits") == 2


def test_without_codes_nothing_is_changed() -> None:
    model = graph(matrices(bits=8, base=np.float32))
    assert op_types(lowered(model, [OneProjection()])) == op_types(model)
