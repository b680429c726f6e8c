"""Experts over codes, lowered and run, against numpy; routing is an input, so that all is tried."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest

from engines.cpu.passes.block_experts import BlockExperts
from engines.lowering import lower
from engines.passes.blocks import BlockCodes
from runtime.names import BLOCK_EXPERTS, EXPERTS_DOWN
from tests.engines.passes.coded_graphs import (
    Array,
    Coded,
    build,
    coded,
    lowered,
    op_types,
    round_in_front,
    rounded,
)
from tests.stock_runtime import error, run

EXACT = 1e-5
"""Of the largest output: another order of summation."""
ROUNDED = 2e-3
"""Values between the halves may round to the next code: a step of 1/127 of a block's largest."""
HEAD = """g (float[B, S, C] x, int64[N, K] experts, float[N, K] scores) => (float[B, S, C] y) {
    flat = Reshape (x, rows)
    DEQUANTISED
    inner = kimivl.ExpertsUp (flat, experts, gate, up)
    mixed = kimivl.ExpertsDown (inner, experts, scores, down)
"""
ALONE = """
    shape = Shape (x)
    y = Reshape (mixed, shape)
}"""
WITH_SHARED = """
    shape = Shape (x)
    routed = Reshape (mixed, shape)
    gated = MatMul (x, shared_gate)
    half = Sigmoid (gated)
    swished = Mul (gated, half)
    lifted = MatMul (x, shared_up)
    both = Mul (swished, lifted)
    shared = MatMul (both, shared_down)
    both_kinds = Add (routed, shared)
    y = Add (x, both_kinds)
}"""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Sizes and formats of experts."""

    bits: int = 4
    group: int | None = 32
    width: int = 64
    inner: int = 32
    num_experts: int = 5
    k: int = 2
    shared: int = 0
    """Width of the shared MLP; none if 0."""
    shared_group: int | None = 32

    def matrices(self, seed: int = 0) -> dict[str, Coded]:
        up, down = (self.width, self.inner), (self.inner, self.width)
        shapes = {"gate": up, "up": up, "down": down}
        made = {
            name: coded(
                10 * seed + index, (self.num_experts, *shape), bits=self.bits, group=self.group
            )
            for index, (name, shape) in enumerate(shapes.items())
        }
        up, down = (self.width, self.shared), (self.shared, self.width)
        shapes = {"shared_gate": up, "shared_up": up, "shared_down": down} if self.shared else {}
        return made | {
            name: coded(10 * seed + 5 + index, shape, bits=self.bits, group=self.shared_group)
            for index, (name, shape) in enumerate(shapes.items())
        }

    def graph(self, matrices: dict[str, Coded]) -> ir.Model:
        text = HEAD + (WITH_SHARED if self.shared else ALONE)
        text = text.replace("[N, K]", f"[N, {self.k}]")
        rows = np.array([-1, self.width])
        return build(text, matrices, rows=rows)


def feeds(layer: Layer, *, slots: int = 2, tokens: int = 3) -> dict[str, Array]:
    """Random inputs; experts differ in each row, in no order; one score is zero, two are equal."""
    random = np.random.default_rng(8)
    rows = slots * tokens
    order = [random.permutation(layer.num_experts)[: layer.k] for _ in range(rows)]
    scores = random.uniform(0.05, 1.0, (rows, layer.k)).astype(np.float32)
    scores[0] = 0.25
    scores[1, 0] = 0
    x = random.standard_normal((slots, tokens, layer.width)).astype(np.float32)
    return {"x": x, "experts": np.array(order), "scores": scores}


def oracle(matrices: dict[str, Coded], given: dict[str, Array], block: int | None) -> Array:
    """Experts one by one, in fp64; rows rounded in blocks where there are blocks."""

    def near(x: Array) -> Array:
        return x if block is None else rounded(x, block)

    def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
        gated = near(x) @ gate
        return np.asarray(near(gated / (1 + np.exp(-gated)) * (near(x) @ up)) @ down)

    meaning = {name: one.meaning for name, one in matrices.items()}
    flat = given["x"].reshape(-1, given["x"].shape[-1]).astype(np.float64)
    y = np.zeros_like(flat)
    for row, (experts, scores) in enumerate(zip(given["experts"], given["scores"], strict=True)):
        for expert, score in zip(experts, scores, strict=True):
            parts = (meaning[name][expert] for name in ("gate", "up", "down"))
            y[row] += score * swiglu(flat[row : row + 1], *parts)[0]
    if "shared_gate" in meaning:
        names = ("shared_gate", "shared_up", "shared_down")
        y += flat + swiglu(flat, *(meaning[name] for name in names))
    return y.reshape(given["x"].shape)


LAYERS = {
    "alone": (Layer(), 32, 0),
    "groups of 16": (Layer(group=16, inner=48), 16, 0),
    "groups of 128": (Layer(group=128, width=256, inner=128), 128, 0),
    "one shared": (Layer(shared=32), 32, 1),
    "three shared": (Layer(shared=96, k=3), 32, 3),
    "all chosen": (Layer(num_experts=3, k=3, shared=64), 32, 2),
    "one": (Layer(num_experts=4, k=1, shared=32), 32, 1),
}
WIDE_LAYERS = {
    "int8": (Layer(bits=8, group=None, shared_group=None, shared=64), 32, 2),
    "int8 odd": (Layer(bits=8, group=None, width=80, inner=176, k=2), 16, 0),
    "int8 in groups": (Layer(bits=8, shared=32), 32, 1),
}


@pytest.mark.parametrize(("layer", "block", "num_shared"), LAYERS.values(), ids=LAYERS)
def test_experts_that_round_nothing_are_exact(layer: Layer, block: int, num_shared: int) -> None:
    matrices = layer.matrices()
    model = lowered(layer.graph(matrices), [BlockExperts(may_round=False)])
    (node,) = (node for node in model.graph if node.op_type == "QMoE")
    assert node.attributes["k"].as_int() == layer.k + num_shared
    assert node.attributes["block_size"].as_int() == block
    assert "kimivl.cpu" not in {node.domain for node in model.graph}
    given = feeds(layer)
    assert error(run(model, given), oracle(matrices, given, None)) <= EXACT


@pytest.mark.parametrize(
    ("layer", "block", "num_shared"),
    (LAYERS | WIDE_LAYERS).values(),
    ids=LAYERS | WIDE_LAYERS,
)
def test_experts_that_round_do_it_in_blocks_of_int8(
    layer: Layer, block: int, num_shared: int
) -> None:
    matrices = layer.matrices()
    model = lowered(layer.graph(matrices), [BlockExperts(may_round=True)])
    (node,) = (node for node in model.graph if node.op_type == BLOCK_EXPERTS)
    attributes = {name: one.as_int() for name, one in node.attributes.items()}
    assert attributes == {
        "bits": layer.bits,
        "block_size": block,
        "k": layer.k,
        "num_shared": num_shared,
        "num_computed": layer.k + num_shared,
    }
    assert not {"MatMul", "ExpertsUp", EXPERTS_DOWN, "DequantizeLinear"} & set(op_types(model))
    given = feeds(layer)
    assert error(run(model, given), oracle(matrices, given, block)) <= ROUNDED


def test_one_token_of_one_slot_is_the_same_as_among_others() -> None:
    layer = Layer(shared=64)
    model = lowered(layer.graph(layer.matrices()), [BlockExperts(may_round=True)])
    given = feeds(layer)
    whole = run(model, given).reshape(-1, layer.width)
    for row in range(6):
        one = {
            "x": given["x"].reshape(6, 1, 1, -1)[row],
            "experts": given["experts"][row : row + 1],
            "scores": given["scores"][row : row + 1],
        }
        np.testing.assert_allclose(run(model, one)[0, 0], whole[row], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "layer",
    [Layer(shared=48, shared_group=16), Layer(shared=64, shared_group=16)],
    ids=["not a multiple", "other groups"],
)
def test_a_shared_mlp_of_another_form_stays_beside_the_experts(layer: Layer) -> None:
    matrices = layer.matrices()
    model = lowered(layer.graph(matrices), [BlockExperts(may_round=False)])
    assert op_types(model).count("MatMul") == 3
    given = feeds(layer)
    assert error(run(model, given), oracle(matrices, given, None)) <= EXACT


@pytest.mark.parametrize("shared", [0, 64])
def test_a_recipes_rounding_to_int8_gives_way_everywhere(shared: int) -> None:
    layer = Layer(bits=8, group=None, shared_group=None, shared=shared)
    matrices = layer.matrices()
    graph = round_in_front(layer.graph(matrices), step=0.5)
    model = lowered(graph, [BlockExperts(may_round=True)])
    assert {"QuantizeLinear", "MatMul"}.isdisjoint(op_types(model))
    given = feeds(layer)
    assert error(run(model, given), oracle(matrices, given, 32)) <= ROUNDED


@pytest.mark.parametrize("bits", [4, 8])
def test_a_recipes_rounding_stays_where_nothing_else_may_be_rounded(bits: int) -> None:
    layer = Layer(bits=bits)
    graph = round_in_front(layer.graph(layer.matrices()), step=0.5)
    found = lowered(graph, [BlockExperts(may_round=False)])
    assert op_types(found) == op_types(graph)


@pytest.mark.parametrize(
    "layer",
    [Layer(bits=8, group=None), Layer(bits=8, group=None, inner=24, width=40)],
    ids=["int8", "int8 and no block"],
)
def test_int8_stays_where_no_operator_can_do_it(layer: Layer) -> None:
    graph = layer.graph(layer.matrices())
    may_round = layer.inner == 24
    assert op_types(lowered(graph, [BlockExperts(may_round=may_round)])) == op_types(graph)


def test_weights_come_expert_by_expert_and_codes_are_never_widened() -> None:
    layer = Layer(shared=64)
    made = lower(layer.graph(layer.matrices()), [BlockExperts(may_round=True)]).new_weights
    codes = [one for one in made if isinstance(one, BlockCodes)]
    assert [one.name for one in codes] == ["gate_codes.blocks", "down_codes.blocks"]
    assert [one.shape for one in codes] == [(7, 64, 32), (7, 64, 16)]
    assert [len(block) for block in codes[0].blocks()] == [64 * 32] * 7
