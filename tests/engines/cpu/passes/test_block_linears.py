"""Linear maps over codes, lowered and run, against numpy."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from engines.cpu.passes.block_linears import BlockLinears
from engines.cpu.passes.compute_in_fp32 import ComputeInFloat32
from tests.engines.passes.coded_graphs import (
    Array,
    Coded,
    build,
    coded,
    lowered,
    op_types,
    round_in_front,
    rounded,
    without_rounding,
)
from tests.stock_runtime import error, run

TOLERANCE = 1e-5
"""Of the largest output: another order of summation."""
FORMS = [  # bits, group, in, out, block
    (4, 16, 64, 24, 16),
    (4, 32, 96, 10, 32),
    (4, 64, 64, 2, 64),
    (4, 128, 384, 34, 128),
    (8, None, 48, 7, 16),
    (8, None, 40, 5, 16),
    (8, None, 4304, 3, 16),
    (8, None, 256, 9, 128),
    (8, 64, 192, 11, 64),
]


def linear(matrix: Coded) -> ir.Model:
    text = "g (float[B, S, K] x) => (float[B, S, N] y) { DEQUANTISED y = MatMul (x, w) }"
    return build(text, {"w": matrix})


def inputs(size: int) -> Array:
    """(B, S, in), one row of zeros and one with an outlier."""
    x = np.random.default_rng(3).standard_normal((2, 5, size)).astype(np.float32)
    x[0, 1] = 0
    x[1, 2, 5] = 60
    return x


@pytest.mark.parametrize(("bits", "group", "size", "outputs", "block"), FORMS)
def test_rounded_products_are_those_of_rows_in_blocks_of_int8(
    bits: int, group: int | None, size: int, outputs: int, block: int
) -> None:
    matrix = coded(1, (size, outputs), bits=bits, group=group)
    model = lowered(linear(matrix), [BlockLinears(may_round=True)])
    assert op_types(model) == ["BlockLinear"]
    attributes = {name: one.as_int() for name, one in model.graph[0].attributes.items()}
    assert attributes == {"K": size, "N": outputs, "bits": bits, "block_size": block}
    blocks = -(-size // block)
    assert {str(name): value.shape for name, value in model.graph.initializers.items()} == {
        "w_codes.blocks": (outputs, blocks, block * bits // 8),
        "w_codes.block_scales": (outputs, blocks),
    }
    x = inputs(size)
    assert error(run(model, {"x": x}), rounded(x, block) @ matrix.meaning) <= TOLERANCE


@pytest.mark.parametrize(("bits", "group", "size", "outputs", "block"), FORMS)
def test_what_is_not_rounding_is_exact(
    bits: int, group: int | None, size: int, outputs: int, block: int
) -> None:
    matrix = coded(2, (size, outputs), bits=bits, group=group)
    model = without_rounding(lowered(linear(matrix), [BlockLinears(may_round=True)]))
    x = inputs(size)
    assert error(run(model, {"x": x}), x @ matrix.meaning) <= TOLERANCE
    assert error(rounded(x, block) @ matrix.meaning, x @ matrix.meaning) > 10 * TOLERANCE


@pytest.mark.parametrize(("bits", "group", "size", "outputs", "block"), FORMS[:4])
def test_int4_is_stock_and_exact_where_nothing_may_be_rounded(
    bits: int, group: int | None, size: int, outputs: int, block: int
) -> None:
    del block
    matrix = coded(3, (size, outputs), bits=bits, group=group)
    model = lowered(linear(matrix), [BlockLinears(may_round=False)])
    assert op_types(model) == ["Cast", "MatMulNBits"]
    x = inputs(size)
    assert error(run(model, {"x": x}), x @ matrix.meaning) <= TOLERANCE


def test_int8_stays_where_nothing_may_be_rounded() -> None:
    model = linear(coded(4, (64, 8), bits=8, group=None))
    found = lowered(model, [BlockLinears(may_round=False)])
    assert op_types(found) == op_types(model) == ["DequantizeLinear", "MatMul"]


def test_rows_of_codes_that_end_within_a_byte_stay() -> None:
    model = linear(coded(5, (32, 7), bits=4, group=32))
    assert op_types(lowered(model, [BlockLinears(may_round=True)])) == op_types(model)


@pytest.mark.parametrize("base", [np.float16, ml_dtypes.bfloat16])
def test_scales_stay_as_narrow_as_they_are_stored(base: type) -> None:
    matrix = coded(6, (64, 8), bits=4, group=32, base=base)
    text = "g (B1[B, S, K] x) => (B1[B, S, N] y) { DEQUANTISED y = MatMul (x, w) }"
    name = "float16" if base is np.float16 else "bfloat16"
    model = lowered(
        build(text.replace("B1", name), {"w": matrix}),
        [ComputeInFloat32(), BlockLinears(may_round=True)],
    )
    scales = model.graph.initializers["w_codes.block_scales"]
    assert scales.dtype == ir.DataType.from_numpy(np.dtype(base))
    x = inputs(64)
    assert error(run(model, {"x": x}), rounded(x, 32) @ matrix.meaning) <= TOLERANCE


def test_a_recipes_rounding_to_int8_gives_way_to_the_finer_one_in_blocks() -> None:
    matrix, x = coded(7, (64, 8), bits=8, group=None), inputs(64)
    model = round_in_front(linear(matrix), step=60 / 127)
    found = lowered(model, [BlockLinears(may_round=True)])
    assert op_types(found) == ["BlockLinear"]
    assert error(run(found, {"x": x}), rounded(x, 64) @ matrix.meaning) <= TOLERANCE
    exact = x @ matrix.meaning
    once, as_the_recipe_says = (run(one, {"x": x}) for one in (found, model))
    assert np.abs(once - exact).mean() < 0.2 * np.abs(as_the_recipe_says - exact).mean()


def test_a_recipes_rounding_stays_where_nothing_else_may_be_rounded() -> None:
    matrix, x, step = coded(8, (64, 8), bits=4, group=32), inputs(64), 0.5
    found = lowered(round_in_front(linear(matrix), step), [BlockLinears(may_round=False)])
    assert op_types(found)[-4:] == ["QuantizeLinear", "DequantizeLinear", "Cast", "MatMulNBits"]
    expected = np.clip(np.rint(x / step), -128, 127) * step @ matrix.meaning
    assert error(run(found, {"x": x}), expected) <= TOLERANCE


def test_a_bias_is_added_as_before() -> None:
    matrix, bias = coded(8, (32, 6), bits=8, group=None), np.arange(6, dtype=np.float32)
    text = """g (float[B, S, K] x) => (float[B, S, N] y) {
        DEQUANTISED
        product = MatMul (x, w)
        y = Add (product, bias)
    }"""
    model = lowered(build(text, {"w": matrix}, bias=bias), [BlockLinears(may_round=True)])
    assert op_types(model) == ["BlockLinear", "Add"]
    x = inputs(32)
    expected = rounded(x, 32) @ matrix.meaning + bias
    assert error(run(model, {"x": x}), expected) <= TOLERANCE
