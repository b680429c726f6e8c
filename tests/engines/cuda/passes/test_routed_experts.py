"""Routers and shared experts within `QMoE` and `MoE`, on the CPU's kernels, against numpy."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from engines.cuda.passes.coded_experts import CodedExperts
from engines.lowering import Pass
from engines.passes.fuse_experts import FuseExperts
from engines.passes.inline_bodies import InlineBodies
from engines.passes.share_mixture import WeighedByShare
from tests.engines.passes.coded_graphs import Array, lowered, op_types, round_in_front
from tests.stock_runtime import error, run

from .routed_graphs import Routed, weights_on_a_card

HALF = 4e-3
"""Of the largest output: products, inner values and scores in fp16."""
ROUNDED = 3e-2
"""The CPU's kernel rounds what meets codes of 8 bits to int8, in blocks."""
EXACT = 2e-5
CODED: tuple[Pass, ...] = (CodedExperts(), InlineBodies())
FUSED: tuple[Pass, ...] = (FuseExperts(cuts_routers=True), InlineBodies())
RELEASED = Routed(k=6, shared=128, in_pairs=False)
"""Choices and shared experts as the released model has them."""


def fused_node(model: ir.Model) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type in ("QMoE", "MoE"))
    return node


def logits(model: ir.Model, fed: dict[str, Array]) -> Array:
    """What the operator of a copy chooses and weighs by, in fp32."""
    copy = model.clone()
    read = fused_node(copy).inputs[1]
    assert read is not None
    wide = ir.node("Cast", [read], {"to": ir.DataType.FLOAT.value})
    wide.outputs[0].name, wide.outputs[0].type = "wide_logits", ir.TensorType(ir.DataType.FLOAT)
    copy.graph.append(wide)
    copy.graph.outputs[:] = [wide.outputs[0]]
    return run(copy, fed)


@pytest.mark.parametrize(
    ("layer", "bound"),
    [
        (Routed(), HALF),
        (RELEASED, HALF),
        (Routed(shared=0), HALF),
        (Routed(bits=8), ROUNDED),
        (replace(RELEASED, bits=8), ROUNDED),
    ],
)
def test_routed_and_shared_experts_are_one_operator(layer: Routed, bound: float) -> None:
    made, fed = lowered(layer.graph(), CODED), layer.feeds()
    pieces = layer.shared // layer.inner
    node = fused_node(made)
    codes = node.inputs[2]
    assert node.attributes["k"].as_int() == layer.k + pieces
    assert codes is not None
    assert codes.shape is not None
    assert codes.shape[0] == layer.num_experts + pieces
    assert not {"ReduceSum", "Div", "Where"} & set(op_types(made))
    assert op_types(made).count("MatMul") == 1  # the router's
    found = run(made, fed)
    assert found.dtype == np.float16
    assert error(found.astype(np.float64), layer.oracle(fed)) <= bound


@pytest.mark.parametrize("layer", [Routed(), Routed(shared=0)])
def test_the_bias_chooses_and_of_equal_experts_the_lower_id(layer: Routed) -> None:
    fed = layer.feeds()
    chosen, _ = layer.routing(fed)
    products = fed["x"].reshape(-1, layer.width).astype(np.float64) @ layer.router
    unbiased = np.argsort(-products, axis=1, kind="stable")[:, : layer.k]
    assert (np.sort(unbiased) != np.sort(chosen)).any()
    assert all(len(set(row)) == 2 for row in (chosen // 2).tolist())  # the last choice is a tie
    found = logits(lowered(layer.graph(), CODED), fed)[:, : layer.num_experts]
    assert [set(np.flatnonzero(row > -1e4)) for row in found] == [set(row) for row in chosen]


@pytest.mark.parametrize(
    ("layer", "steps"),
    [
        (Routed(), CODED),
        (RELEASED, CODED),
        (Routed(shared=0), CODED),
        (Routed(), FUSED),
    ],
)
def test_a_card_weighs_experts_by_their_scores_and_shared_ones_by_one(
    layer: Routed, steps: tuple[Pass, ...]
) -> None:
    made, fed = lowered(layer.graph(), steps), layer.feeds()
    found = logits(made, fed)
    pieces = found.shape[1] - layer.num_experts
    shares = weights_on_a_card(found, layer.k + pieces)
    expected = np.zeros_like(shares)
    chosen, scores = layer.routing(fed)
    np.put_along_axis(expected, chosen, scores, axis=1)
    expected[:, layer.num_experts :] = 1
    assert pieces == (0 if steps is FUSED else layer.shared // layer.inner)
    assert np.abs((layer.scale + pieces) * shares - expected).max() <= 1e-3
    assert np.array_equal(shares > 0, expected > 0)


@pytest.mark.parametrize(
    "layer", [RELEASED, replace(RELEASED, shared=0), replace(RELEASED, scale=1.0)]
)
def test_logits_in_16_bits_lie_about_zero(layer: Routed) -> None:
    found = logits(lowered(layer.graph(), CODED), layer.feeds())[:, : layer.num_experts]
    assert abs(np.median(found[found > -1e4])) < 0.5


@pytest.mark.parametrize("factor", [2.446, 1.0, 0.3, 6.0])
@pytest.mark.parametrize(
    ("dtype", "of_type"),
    [(ir.DataType.FLOAT16, np.float16), (ir.DataType.BFLOAT16, ml_dtypes.bfloat16)],
)
def test_the_logit_of_a_shared_expert_is_a_number_of_the_type(
    dtype: ir.DataType, of_type: type, factor: float
) -> None:
    value = ir.Value(name="chosen", shape=ir.Shape(["N", 6]))
    weighing = WeighedByShare(
        hidden=value,
        chosen=value,
        scores=value,
        num_experts=10,
        num_shared=2,
        factor=factor,
        dtype=dtype,
    )
    tape = ir.tape.Tape()
    weighing.logits(tape)
    constants = [node.attributes for node in tape.nodes if node.op_type == "Constant"]
    (row,) = (one["value_floats"].as_floats() for one in constants if "value_floats" in one)
    assert len(row) == 12
    assert row[-1] == row[-2] == float(of_type(row[-1]))
    assert row[-1] == pytest.approx(np.log(6 / factor), abs=0.01)


def test_a_token_whose_scores_are_all_zero_gets_numbers() -> None:
    layer = Routed(is_dead=True)
    fed = {"x": np.abs(layer.feeds()["x"]) + np.float16(0.5)}
    assert np.isfinite(run(lowered(layer.graph(), CODED), fed).astype(np.float32)).all()


def test_a_recipes_rounding_in_front_of_both_kinds_goes() -> None:
    layer = Routed(bits=8)
    made = lowered(round_in_front(layer.graph(), step=0.5), CODED)
    assert fused_node(made).attributes["k"].as_int() == layer.k + 1


@pytest.mark.parametrize(
    "layer",
    [
        Routed(normalize=0),
        Routed(shared_group=64),
        Routed(shared=96),
        Routed(k=8),  # nine rows of a token are not multiplied one by one
    ],
)
def test_shared_experts_that_do_not_fit_stay_beside_the_routed_ones(layer: Routed) -> None:
    made, fed = lowered(layer.graph(), CODED), layer.feeds()
    assert fused_node(made).attributes["k"].as_int() == layer.k
    assert op_types(made).count("MatMul") == 4
    assert ("ReduceSum" in op_types(made)) == (not layer.normalize)
    assert error(run(made, fed).astype(np.float64), layer.oracle(fed)) <= HALF


def test_a_router_whose_scores_are_read_elsewhere_too_stays_as_it_is() -> None:
    layer = Routed()
    model = layer.graph()
    (scores,) = (node.outputs[1] for node in model.graph if node.op_type == "Router")
    model.graph.outputs.append(scores)
    made, fed = lowered(model, CODED), layer.feeds()
    assert "ReduceSum" in op_types(made)
    assert error(run(made, fed).astype(np.float64), layer.oracle(fed)) <= HALF


@pytest.mark.parametrize("layer", [Routed(base=np.float32), replace(RELEASED, base=np.float32)])
def test_experts_without_an_operator_for_codes_get_shares_too(layer: Routed) -> None:
    made, fed = lowered(layer.graph(), FUSED), layer.feeds()
    assert fused_node(made).op_type == "MoE"
    assert not {"ReduceSum", "Div", "Where"} & set(op_types(made))
    assert error(run(made, fed), layer.oracle(fed)) <= EXACT
    shares = weights_on_a_card(logits(made, fed), layer.k)
    chosen, scores = layer.routing(fed)
    weights = np.take_along_axis(layer.scale * shares, chosen, axis=1)
    assert np.abs(weights / scores - 1).max() <= EXACT


def test_target_cpu_keeps_its_routers() -> None:
    layer = Routed(base=np.float32)
    made = lowered(layer.graph(), [FuseExperts()])
    (router,) = (node for node in made.graph if node.op_type == "Router")
    assert (router.overload, router.attributes["normalize"].as_int()) == ("", 1)
    assert {step.name for step in (FuseExperts(), FuseExperts(cuts_routers=True))} == {
        "fuse-experts",
        "fuse-experts-by-share",
    }
    fed = layer.feeds()
    assert error(run(made, fed), layer.oracle(fed)) <= EXACT
