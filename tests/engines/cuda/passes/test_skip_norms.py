"""A sum and the norm behind it as one operator: the same numbers, and only where it is one."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.cuda.passes.skip_norms import SkipNorms
from tests.engines.passes.coded_graphs import Array, build, lowered, op_types
from tests.stock_runtime import error, run

WIDTH, EPSILON = 48, 1e-3
BETWEEN = """g (float[B, S, 48] x, float[B, S, 48] y) => (float[B, S, 48] out) {
    total = Add (x, y)
    norm = RMSNormalization <axis = -1, epsilon = 0.001> (total, weight)
    twice = Mul (norm, norm)
    out = Add (total, twice)
}"""
EXACT = 1e-6


def graph(text: str = BETWEEN, width: int = WIDTH) -> ir.Model:
    """Values within it have types and shapes, as a trace leaves them."""
    weight = np.random.default_rng(0).uniform(0.5, 2, width).astype(np.float32)
    model = build(text, {}, weight=weight)
    for node in model.graph:
        for value in node.outputs:
            value.type, value.shape = model.graph.inputs[0].type, model.graph.inputs[0].shape
    return model


def values() -> dict[str, Array]:
    random = np.random.default_rng(1)
    return {name: random.standard_normal((3, 2, WIDTH), dtype=np.float32) for name in "xy"}


def meaning(model: ir.Model) -> Array:
    weight = model.graph.initializers["weight"].const_value
    assert weight is not None
    total = values()["x"].astype(np.float64) + values()["y"]
    norm = total / np.sqrt(np.square(total).mean(axis=-1, keepdims=True) + EPSILON)
    answer: Array = total + np.square(norm * weight.numpy())
    return answer


def test_the_numbers_are_those_of_the_sum_and_its_norm() -> None:
    made = lowered(graph(), [SkipNorms()])
    assert op_types(made) == ["SkipSimplifiedLayerNormalization", "Mul", "Add"]
    assert error(run(made, values()), meaning(graph())) < EXACT
    assert error(run(made, values()), run(graph(), values())) < EXACT


def test_a_sum_that_is_an_output_of_the_graph_keeps_its_name() -> None:
    model = graph()
    model.graph.outputs.append(model.graph[0].outputs[0])
    made = lowered(model, [SkipNorms()])
    assert [value.name for value in made.graph.outputs] == ["out", "total"]
    assert made.graph.outputs[1].producer() is made.graph[0]


def test_half_precision_is_kept() -> None:
    text = BETWEEN.replace("float", "float16")
    weight = np.ones(WIDTH, dtype=np.float16)
    model = build(text, {}, weight=weight)
    for node in model.graph:
        for value in node.outputs:
            value.type, value.shape = model.graph.inputs[0].type, model.graph.inputs[0].shape
    made = lowered(model, [SkipNorms()])
    assert op_types(made)[0] == "SkipSimplifiedLayerNormalization"
    fed = {name: one.astype(np.float16) for name, one in values().items()}
    assert run(made, fed).dtype == np.float16
    assert error(run(made, fed).astype(np.float64), run(model, fed)) < 4e-3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("float[B, S, 48] y", "float[B, 1, 48] y"),
        ("float[B, S, 48] y", "float[48] y"),
        ("axis = -1", "axis = 1"),
        ("RMSNormalization <axis = -1, epsilon = 0.001> (total, weight)", "Relu (total)"),
        ("twice = Mul (norm, norm)", "twice = RMSNormalization (total, weight)"),
        ("epsilon = 0.001", "stash_type = 10"),
    ],
)
def test_what_is_not_the_norm_of_two_equal_sides_stays(old: str, new: str) -> None:
    assert old in BETWEEN
    model = graph(BETWEEN.replace(old, new))
    before = op_types(model)
    assert op_types(lowered(model, [SkipNorms()])) == before
