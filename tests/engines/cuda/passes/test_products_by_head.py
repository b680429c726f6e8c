"""Products with a matrix for each head: the same numbers, and one batch of heads."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.cuda.passes.products_by_head import ProductsByHead
from engines.passes.inline_bodies import InlineBodies
from tests.engines.passes.coded_graphs import Array, build, coded, lowered, op_types, round_in_front
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

EXPERTS = """g (float[N, 24] x, int64[N, 2] experts, float[N, 2] scores) => (float[N, 24] y) {
    DEQUANTISED
    inner = kimivl.ExpertsUp (x, experts, gate, up)
    mixed = kimivl.ExpertsDown (inner, experts, scores, down)
    y = Identity (mixed)
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


def test_products_of_experts_that_keep_their_bodies_stay() -> None:
    shapes = {"gate": (24, 40), "up": (24, 40), "down": (40, 24)}
    experts = {
        name: coded(seed, (3, *shape), bits=8, group=None)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    given = round_in_front(build(EXPERTS, experts), step=0.02)
    made = lowered(given, [InlineBodies(), ProductsByHead()])
    random = np.random.default_rng(3)
    fed = {
        "x": random.standard_normal((5, 24), dtype=np.float32),
        "experts": np.array([random.permutation(3)[:2] for _ in range(5)]),
        "scores": random.uniform(0.1, 1.0, (5, 2)).astype(np.float32),
    }
    assert op_types(made).count("MatMul") > 0
    np.testing.assert_allclose(run(made, fed), run(given, fed), rtol=1e-5, atol=1e-5)


def test_a_product_that_stands_alone_stops_the_build() -> None:
    with pytest.raises(RuntimeError, match="products that are not between transpositions"):
        lowered(graph(BARE), [ProductsByHead()])
