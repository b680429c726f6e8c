"""Experts with codes as `QMoE`, run on the CPU's kernels, against numpy; routing is an input."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from engines.cuda.passes.coded_experts import CodedExperts
from tests.engines.passes.coded_graphs import (
    Array,
    Coded,
    build,
    coded,
    lowered,
    op_types,
    round_in_front,
)
from tests.stock_runtime import error, run

TOKENS, EXPERTS, K = 5, 6, 3
HALF = 4e-3
"""Of the largest output: products, inner values and scores in fp16."""
ROUNDED = 3e-2
"""The CPU's kernel rounds what meets codes of 8 bits to int8, in blocks."""
GRAPH = """g (float16[N, C] x, int64[N, K] experts, float[N, K] scores) => (float16[N, C] y) {
    DEQUANTISED
    inner = kimivl.ExpertsUp (x, experts, gate, up)
    mixed = kimivl.ExpertsDown (inner, experts, scores, down)
    y = Identity (mixed)
}"""


def matrices(
    *, bits: int, group: int | None, width: int = 128, inner: int = 64
) -> dict[str, Coded]:
    shapes = {"gate": (width, inner), "up": (width, inner), "down": (inner, width)}
    return {
        name: coded(seed, (EXPERTS, *shape), bits=bits, group=group, base=np.float16)
        for seed, (name, shape) in enumerate(shapes.items())
    }


def graph(given: dict[str, Coded], text: str = GRAPH) -> ir.Model:
    return build(text.replace("[N, K]", f"[N, {K}]"), given)


def feeds(width: int = 128) -> dict[str, Array]:
    """Experts in no order; one token's scores are equal, one score is zero."""
    random = np.random.default_rng(2)
    scores = random.uniform(0.05, 1.0, (TOKENS, K)).astype(np.float32)
    scores[0], scores[1, 2] = 0.25, 0
    order = [random.permutation(EXPERTS)[:K] for _ in range(TOKENS)]
    x = random.standard_normal((TOKENS, width)).astype(np.float16)
    return {"x": x, "experts": np.array(order), "scores": scores}


def oracle(given: dict[str, Coded], fed: dict[str, Array]) -> Array:
    """Expert by expert, in fp64."""
    meaning = {name: one.meaning for name, one in given.items()}
    x = fed["x"].astype(np.float64)
    y = np.zeros_like(x)
    for row in range(TOKENS):
        for expert, score in zip(fed["experts"][row], fed["scores"][row], strict=True):
            gated = x[row] @ meaning["gate"][expert]
            inner = gated / (1 + np.exp(-gated)) * (x[row] @ meaning["up"][expert])
            y[row] += score * (inner @ meaning["down"][expert])
    return y


@pytest.mark.parametrize(
    ("bits", "group", "bound"), [(4, 32, HALF), (4, 64, HALF), (8, 32, ROUNDED), (8, None, ROUNDED)]
)
def test_the_chosen_experts_are_mixed_by_their_scores(
    bits: int, group: int | None, bound: float
) -> None:
    given = matrices(bits=bits, group=group)
    made = lowered(graph(given), [CodedExperts()])
    (node,) = (node for node in made.graph if node.op_type == "QMoE")
    attributes = {name: one.value for name, one in node.attributes.items()}
    assert (attributes["k"], attributes["block_size"]) == (K, group or 64)
    assert (attributes["weights_prepacked"], attributes["normalize_routing_weights"]) == (0, 1)
    read = [node.inputs[place] for place in (0, 1, 3, 6)]
    assert {value.dtype for value in read if value} == {ir.DataType.FLOAT16}
    found = run(made, feeds())
    assert found.dtype == np.float16
    assert error(found.astype(np.float64), oracle(given, feeds())) <= bound


def test_what_a_card_weighs_by_are_the_scores() -> None:
    """The CUDA kernel: softmax over all experts, the K largest, normalised; no other input."""
    made = lowered(graph(matrices(bits=4, group=64)), [CodedExperts()])
    (node,) = (node for node in made.graph if node.op_type == "QMoE")
    assert len(node.inputs) == 7
    logits = node.inputs[1]
    assert logits is not None
    made.graph.outputs[:] = [logits]
    fed = feeds()
    found = run(made, fed).astype(np.float64)
    shares = np.exp(found - found.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    kth = -np.sort(-shares, axis=1)[:, K - 1 : K]
    shares = np.where(shares >= kth, shares, 0)
    shares /= shares.sum(axis=1, keepdims=True)
    expected = np.zeros_like(shares)
    np.put_along_axis(expected, fed["experts"], fed["scores"], axis=1)
    weights = shares * fed["scores"].sum(axis=1, keepdims=True)
    assert error(weights, expected) <= HALF


def test_the_sum_of_the_scores_is_not_lost() -> None:
    given = matrices(bits=4, group=64)
    made = lowered(graph(given), [CodedExperts()])
    twice = {**feeds(), "scores": 2 * feeds()["scores"]}
    once = run(made, feeds()).astype(np.float64)
    assert error(run(made, twice).astype(np.float64), 2 * once) <= HALF


def test_a_recipes_rounding_around_the_halves_goes() -> None:
    given = matrices(bits=8, group=None)
    made = lowered(round_in_front(graph(given), step=0.5), [CodedExperts()])
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(op_types(made))
    assert error(run(made, feeds()).astype(np.float64), oracle(given, feeds())) <= ROUNDED


@pytest.mark.parametrize("sizes", [{"inner": 96}, {"width": 96}])
def test_widths_that_the_kernel_does_not_take_stay(sizes: dict[str, int]) -> None:
    made = lowered(graph(matrices(bits=4, group=32, **sizes)), [CodedExperts()])
    assert {"ExpertsUp", "ExpertsDown"} < set(op_types(made))


def test_experts_in_fp32_stay() -> None:
    given = {
        name: replace(one, scales=one.scales.astype(np.float32))
        for name, one in matrices(bits=4, group=32).items()
    }
    made = lowered(graph(given, GRAPH.replace("float16", "float")), [CodedExperts()])
    assert {"ExpertsUp", "ExpertsDown"} < set(op_types(made))
    fed = {**feeds(), "x": feeds()["x"].astype(np.float32)}
    assert error(run(made, fed), oracle(given, feeds())) <= 1e-5


def test_two_halves_that_are_no_pair_stop_the_build() -> None:
    text = """g (float16[N, C] x, int64[N, K] experts) => (float16[N, K, I] inner) {
        DEQUANTISED
        inner = kimivl.ExpertsUp (x, experts, gate, up)
    }"""
    given = matrices(bits=4, group=32)
    del given["down"]
    with pytest.raises(
        RuntimeError, match="coded-experts-by-share on g: requires: 1 ExpertsUp, 0 down"
    ):
        lowered(graph(given, text), [CodedExperts()])
