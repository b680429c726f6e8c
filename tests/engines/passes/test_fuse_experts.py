"""Unquantised experts in 16 bits: how the scores are handed to `MoE`, which computes in 16 bits."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from engines.lowering import Lowered
from engines.passes.fuse_experts import FuseExperts
from export.graph.weights_file import hold
from tests.stock_runtime import run

from .coded_graphs import Array, build

WIDTH, INNER, EXPERTS, K = 16, 8, 8, 4
GRAPH = """g (TYPE[N, 16] x, int64[N, 4] experts, float[N, 4] scores) => (TYPE[N, 16] y) {
    inner = kimivl.ExpertsUp (x, experts, gate, up)
    mixed = kimivl.ExpertsDown (inner, experts, scores, down)
    y = Identity (mixed)
}"""
TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
STEPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half of the last bit of a number just below one."""


def fused(model: ir.Model) -> ir.Model:
    """Fuse a copy, which has no router: the promise about routers is left out."""
    result = FuseExperts().run(Lowered(model=model.clone()))
    hold(result.model.graph, result.new_weights)
    return result.model


def router_logits(dtype: str, scores: Array) -> Array:
    """What `MoE` chooses and weighs by, as numbers of the type."""
    random = np.random.default_rng(0)
    stored = {
        name: random.standard_normal((EXPERTS, *shape)).astype(TYPES[dtype])
        for name, shape in {
            "gate": (WIDTH, INNER),
            "up": (WIDTH, INNER),
            "down": (INNER, WIDTH),
        }.items()
    }
    model = fused(build(GRAPH.replace("TYPE", dtype), {}, **stored))
    (moe,) = (node for node in model.graph if node.op_type == "MoE")
    logits = moe.inputs[1]
    assert logits is not None
    wide = ir.node("Cast", [logits], {"to": ir.DataType.FLOAT.value})
    wide.outputs[0].name, wide.outputs[0].type = "wide", ir.TensorType(ir.DataType.FLOAT)
    model.graph.append(wide)
    model.graph.outputs[:] = [wide.outputs[0]]
    users = {user for user, _ in logits.uses()} - {wide}
    assert users == {moe}
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name != "x"]
    common.RemoveUnusedNodesPass()(model)
    experts = np.tile(np.array([5, 0, 7, 2]), (len(scores), 1))
    return run(model, {"experts": experts, "scores": scores})


@pytest.mark.parametrize("dtype", TYPES)
def test_experts_are_weighed_as_well_as_the_type_can_say_it(dtype: str) -> None:
    scores = np.random.default_rng(1).uniform(0.2, 1.0, (50, K)).astype(np.float32)
    logits = router_logits(dtype, scores).astype(np.float64)
    chosen = logits[:, [5, 0, 7, 2]]
    shares = np.exp(chosen) / np.exp(chosen).sum(axis=1, keepdims=True)
    expected = scores / scores.sum(axis=1, keepdims=True)
    assert np.abs(shares / expected - 1).max() <= 2 * STEPS[dtype]  # logarithms up to 2


@pytest.mark.parametrize("dtype", TYPES)
def test_experts_that_were_not_chosen_weigh_nothing(dtype: str) -> None:
    scores = np.array([[1.0, 1e-3, 0.0, 0.5], [0.0] * K], dtype=np.float32)
    logits = router_logits(dtype, scores)
    assert (logits[:, [1, 3, 4, 6]] < -1e4).all()
    assert not np.isnan(logits).any()
    assert np.isfinite(logits[:, [5, 0, 7, 2]]).all()
