"""Attention as the CUDA provider runs it: the numbers of softmax attention in float64."""

import numpy as np
import onnx_ir as ir
import pytest

from engines.cuda.passes.scaled_attention import ScaledAttention
from export.graph.widen import widen_graph
from tests.engines.passes.coded_graphs import Array, build, lowered, op_types
from tests.stock_runtime import run

BATCH, HEADS, RANK, ROPE, CACHED = 3, 4, 16, 8, 21
SCALE = 0.137
GRAPH = """g ({dtype}[B, S, 4, 24] query, {dtype}[B, 1, T, 24] cache, int64[B] lengths)
  => ({dtype}[B, S, 4, 16] mixed) {{
    mixed = kimivl.LatentAttention <rank = 16, scale = 0.137> (query, cache, lengths)
}}"""


def graph(dtype: str) -> ir.Model:
    return build(GRAPH.format(dtype=dtype), {})


def feeds(tokens: int) -> dict[str, Array]:
    random = np.random.default_rng(tokens)
    query = random.standard_normal((BATCH, tokens, HEADS, RANK + ROPE)) * 3
    cache = random.standard_normal((BATCH, 1, CACHED, RANK + ROPE)) * 3
    lengths = np.array([0, 5, CACHED - tokens])
    wide = {"query": query.astype(np.float32), "cache": cache.astype(np.float32)}
    return {**wide, "lengths": lengths}


def oracle(fed: dict[str, Array]) -> Array:
    """Each query of each head over what it sees, one at a time."""
    query, cache = (fed[name].astype(np.float64) for name in ("query", "cache"))
    mixed = np.zeros((*query.shape[:3], RANK))
    for slot, token, head in np.ndindex(*query.shape[:3]):
        seen = cache[slot, 0, : fed["lengths"][slot] + token + 1]
        weights = np.exp(SCALE * (seen @ query[slot, token, head]))
        mixed[slot, token, head] = weights / weights.sum() @ seen[:, :RANK]
    return mixed


@pytest.mark.parametrize("tokens", [1, 7])
def test_attention_is_that_of_float64(tokens: int) -> None:
    made, fed = lowered(graph("float"), [ScaledAttention()]), feeds(tokens)
    np.testing.assert_allclose(run(made, fed), oracle(fed), rtol=2e-5, atol=2e-5)


def test_what_is_behind_a_text_is_not_seen() -> None:
    made, fed = lowered(graph("float"), [ScaledAttention()]), feeds(1)
    expected = run(made, fed)
    fed["cache"][0, 0, 1:] = 1e4
    np.testing.assert_array_equal(run(made, fed)[0], expected[0])


def test_scores_stay_in_the_base_type_and_are_scaled_in_the_product() -> None:
    made = lowered(graph("bfloat16"), [ScaledAttention()])
    assert {"Cast", "CastLike", "Mul"} & set(op_types(made)) == set()
    (product,) = (node for node in made.graph if node.op_type == "FusedMatMul")
    assert product.attributes["alpha"].as_float() == pytest.approx(SCALE)
    (masked,) = (node for node in made.graph if node.op_type == "Where")
    hidden = masked.inputs[2]
    assert hidden is not None
    (constant,) = (node for node in made.graph if hidden in node.outputs)
    assert constant.attributes["value"].as_tensor().dtype == ir.DataType.BFLOAT16
    widen_graph(made)
    fed = feeds(3)
    np.testing.assert_allclose(run(made, fed), oracle(fed), rtol=2e-5, atol=2e-5)
