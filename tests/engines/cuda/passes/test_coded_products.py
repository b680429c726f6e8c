"""Products with codes as `MatMulNBits`, run on the CPU's kernels, against numpy."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.cuda.passes.coded_products import CodedProducts
from tests.engines.passes.coded_graphs import (
    Array,
    build,
    coded,
    lowered,
    op_types,
    round_in_front,
)
from tests.stock_runtime import error, run

EXACT = 1e-5
"""Of the largest output: another order of summation."""
HALF = 2e-3
"""Products in fp16, sums of 64 of them."""
GRAPH = """g (TYPE[B, S, C] x) => (TYPE[B, S, N] y) {
    DEQUANTISED
    y = MatMul (x, weight)
}"""


def graph(
    *, bits: int, group: int | None, inputs: int = 64, base: type = np.float32
) -> tuple[ir.Model, Array]:
    weight = coded(3, (inputs, 48), bits=bits, group=group, base=base)
    name = "float" if base is np.float32 else "float16"
    return build(GRAPH.replace("TYPE", name), {"weight": weight}), weight.meaning


def rows(inputs: int = 64) -> Array:
    return np.random.default_rng(5).standard_normal((2, 3, inputs)).astype(np.float32)


@pytest.mark.parametrize(("bits", "group"), [(4, 16), (4, 32), (4, 64), (8, 32), (8, None)])
def test_codes_are_read_as_they_are_and_nothing_is_rounded(bits: int, group: int | None) -> None:
    model, meaning = graph(bits=bits, group=group)
    made = lowered(model, [CodedProducts()])
    (node,) = made.graph
    assert (node.domain, node.op_type) == ("com.microsoft", "MatMulNBits")
    assert "accuracy_level" not in node.attributes
    assert node.attributes["block_size"].as_int() == (group or 64)
    assert error(run(made, {"x": rows()}), rows() @ meaning) <= EXACT


def test_products_stay_in_the_type_of_their_scales() -> None:
    model, meaning = graph(bits=4, group=32, base=np.float16)
    made = lowered(model, [CodedProducts()])
    (node,) = made.graph
    assert [value.dtype for value in node.inputs if value is not None] == [
        ir.DataType.FLOAT16,
        ir.DataType.UINT8,
        ir.DataType.FLOAT16,
    ]
    found = run(made, {"x": rows().astype(np.float16)})
    assert found.dtype == np.float16
    assert error(found.astype(np.float64), rows() @ meaning) <= HALF


def test_a_recipes_rounding_to_int8_in_front_of_codes_goes() -> None:
    model, meaning = graph(bits=8, group=None)
    made = lowered(round_in_front(model, step=0.5), [CodedProducts()])
    assert op_types(made) == ["MatMulNBits"]
    assert error(run(made, {"x": rows()}), rows() @ meaning) <= EXACT


def test_a_matrix_that_does_not_fill_its_blocks_stays() -> None:
    model, meaning = graph(bits=8, group=None, inputs=72)
    made = lowered(model, [CodedProducts()])
    assert op_types(made) == ["DequantizeLinear", "MatMul"]
    assert error(run(made, {"x": rows(72)}), rows(72) @ meaning) <= EXACT


def test_scales_of_another_type_stop_the_build() -> None:
    model, _ = graph(bits=4, group=32)
    (x,) = model.graph.inputs
    x.type = ir.TensorType(ir.DataType.FLOAT16)
    with pytest.raises(RuntimeError, match="scales are of another type"):
        lowered(model, [CodedProducts()])
