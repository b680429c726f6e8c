"""Products with a matrix for each head: the same numbers, and one batch of heads."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.cuda.passes.products_by_head import ProductsByHead
from tests.engines.passes.coded_graphs import Array, build, lowered, op_types
from tests.stock_runtime import run

BATCH, TOKENS, HEADS, INPUTS, OUTPUTS = 3, 2, 4, 5, 6
GRAPH = """g (float[B, S, 4, 5] x) => (float[B, S, 4, 6] y) {
    by_head = Transpose <perm = [0, 2, 1, 3]> (x)
    made = MatMul (by_head, each)
    y = Transpose <perm = [0, 2, 1, 3]> (made)
}"""
BARE = """g (float[B, 4, S, 5] x) => (float[B, 4, S, 6] y) {
    made = MatMul (x, each)
    y = Identity (made)
}"""


def graph(text: str) -> ir.Model:
    each = np.random.default_rng(0).standard_normal((HEADS, INPUTS, OUTPUTS))
    return build(text, {}, each=each.astype(np.float32))


def values() -> Array:
    shape = (BATCH, TOKENS, HEADS, INPUTS)
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def test_the_numbers_are_those_of_the_product() -> None:
    made = lowered(graph(GRAPH), [ProductsByHead()])
    np.testing.assert_allclose(
        run(made, {"x": values()}), run(graph(GRAPH), {"x": values()}), rtol=1e-5
    )


def test_both_sides_of_the_product_have_a_batch_of_heads() -> None:
    made = lowered(graph(GRAPH), [ProductsByHead()])
    (product,) = (node for node in made.graph if node.op_type == "MatMul")
    left = product.inputs[0]
    assert left is not None
    made.graph.outputs[:] = [left]
    assert run(made, {"x": values()}).shape == (HEADS, BATCH * TOKENS, INPUTS)
    assert op_types(made).count("Transpose") == 2


def test_a_product_that_stands_alone_stops_the_build() -> None:
    with pytest.raises(RuntimeError, match="products that are not between transpositions"):
        lowered(graph(BARE), [ProductsByHead()])
