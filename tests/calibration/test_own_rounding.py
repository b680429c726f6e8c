"""What lowered graphs round by themselves: read off them, and done by modules beside them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from calibration.own_rounding import (
    OwnRounding,
    in_blocks,
    own_rounding,
    replaced_ports,
    round_in_blocks,
)
from calibration.tolerances import GRAPH_FP32, GRAPH_ROUNDED
from calibration.verify import tolerance
from export.graphs import plan_graphs
from export.recipe.reading import load_recipe
from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig
from runtime.names import BLOCK_EXPERTS, BLOCK_LINEAR, CPU_DOMAIN, blocks_name, joint_name

CONFIG = KimiVLConfig.load(Path("examples/nano/checkpoint/config.json"))
EXPERTS = ("mlp.experts.gate_proj", "mlp.experts.down_proj")


def module_of(layer: int) -> nn.Module:
    return plan_graphs(CONFIG, torch.float32, [layer], taps=False)[2].build()


def graph(*nodes: ir.Node) -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=nodes, opset_imports={CPU_DOMAIN: 1}), ir_version=10)


def linear(parameter: str, block: int) -> ir.Node:
    inputs = [ir.Value(name="x"), ir.Value(name=blocks_name(parameter)), ir.Value(name="s")]
    return ir.node(BLOCK_LINEAR, inputs, {"block_size": block}, domain=CPU_DOMAIN)


def experts(block: int, num_shared: int) -> ir.Node:
    names = ["x", "experts", "scores", blocks_name(EXPERTS[0]), "s", blocks_name(EXPERTS[1]), "t"]
    attributes = {"block_size": block, "num_shared": num_shared}
    inputs = [ir.Value(name=name) for name in names]
    return ir.node(BLOCK_EXPERTS, inputs, attributes, domain=CPU_DOMAIN)


def test_blocks_are_rounded_by_their_largest_number() -> None:
    x = np.array([[3.0, -127.0, 0.4, 0.6, 0, 0, 0, 0, 1e-3, 2e-3]], dtype=np.float32)
    found = in_blocks(torch.from_numpy(x), 4).numpy()
    np.testing.assert_allclose(found[0, :8], [3, -127, 0, 1, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found[0, 8:], [64 / 127 * 2e-3, 2e-3], rtol=1e-6)


@pytest.mark.parametrize("num_shared", [0, 1])
def test_the_nodes_of_a_graph_say_what_is_rounded(num_shared: int) -> None:
    model = graph(linear("self_attn.o_proj.weight", 64), experts(32, num_shared))
    found = own_rounding(model, module_of(1))
    shared = {f"mlp.shared_experts.{name}_proj.weight": 32 for name in ("gate", "up", "down")}
    expected = {"self_attn.o_proj.weight": 64, EXPERTS[0]: 32, EXPERTS[1]: 32}
    assert found.blocks == expected | (shared if num_shared else {})
    assert found.replaces == found.blocks.keys()


@pytest.mark.parametrize("num_shared", [0, 1])
def test_experts_of_8_bits_round_what_meets_those_behind_the_routed_ones(num_shared: int) -> None:
    node = experts(32, 0)
    count = CONFIG.decoder.num_experts + num_shared
    codes = [value for value in node.inputs if value and str(value.name).endswith(".blocks")]
    for value in codes:
        value.shape = ir.Shape([count, 256, 128])
    attributes = {"block_size": 32, "expert_weight_bits": 8}
    made = ir.node("QMoE", list(node.inputs), attributes, domain="com.microsoft")
    found = own_rounding(graph(made), module_of(1))
    shared = {f"mlp.shared_experts.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert found.blocks.keys() == {*EXPERTS, *(shared if num_shared else ())}
    assert found.replaces == found.blocks.keys()


def test_a_rounding_that_is_still_in_front_is_not_replaced() -> None:
    first = ir.node("DequantizeLinear", [ir.Value(name="codes"), ir.Value(name="scale")])
    nodes = [linear("self_attn.o_proj.weight", 64), experts(32, 0)]
    for node in nodes:
        node.replace_input_with(0, first.outputs[0])
    found = own_rounding(graph(first, *nodes), module_of(1))
    assert found.blocks.keys() == {"self_attn.o_proj.weight", *EXPERTS}
    assert found.replaces == {EXPERTS[1]}


def test_several_parameters_in_one_matrix_are_all_met_by_what_meets_it() -> None:
    both = ["self_attn.kv_a_proj_with_mqa.weight", "self_attn.q_proj.weight"]
    node = linear(joint_name(both), 64)
    found = own_rounding(graph(node), module_of(1))
    assert found.blocks == dict.fromkeys(both, 64)
    assert found.replaces == set(both)
    back = ir.node("DequantizeLinear", [ir.Value(name="codes"), ir.Value(name="scale")])
    behind = linear(joint_name(both), 64)
    behind.replace_input_with(0, back.outputs[0])
    assert own_rounding(graph(back, behind), module_of(1)).replaces == set()


def test_other_graphs_round_nothing_by_themselves() -> None:
    product = ir.node("MatMul", [ir.Value(name="x"), ir.Value(name="self_attn.o_proj.weight")])
    found = own_rounding(graph(product), module_of(1))
    assert found == OwnRounding({}, frozenset())
    assert replaced_ports(module_of(1), found) == frozenset()


def test_a_module_rounds_in_front_of_the_named_parameters_and_nowhere_else() -> None:
    module = module_of(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    seen: dict[str, torch.Tensor] = {}
    x = torch.randn(1, 3, CONFIG.decoder.width, generator=torch.Generator().manual_seed(0))
    rounding = OwnRounding({"mlp.gate_proj.weight": 16}, frozenset())
    round_in_blocks(module, rounding)
    for name in ("gate_proj", "up_proj"):
        module.get_submodule(f"mlp.{name}").register_forward_hook(
            lambda _, inputs, __, name=name: seen.update({name: inputs[0]})
        )
    module.get_submodule("mlp")(x)
    torch.testing.assert_close(seen["gate_proj"], in_blocks(x, 16))
    torch.testing.assert_close(seen["up_proj"], x, rtol=0, atol=0)
    assert (seen["gate_proj"] != x).any()


def test_rounding_between_the_halves_of_experts_replaces_the_recipes() -> None:
    found = OwnRounding({EXPERTS[1]: 32}, frozenset({EXPERTS[1]}))
    assert replaced_ports(module_of(1), found) == {"mlp.experts.down_input"}


@pytest.mark.parametrize(
    ("recipe", "target", "allowed"),
    [
        ("int4", "cpu", GRAPH_ROUNDED),
        ("int4", "rtx:sm89", GRAPH_FP32),
        ("int8-weight-only", "cpu", GRAPH_FP32),
        ("int8", "rtx:sm89", GRAPH_ROUNDED),
        ("bf16", "cpu", GRAPH_FP32),
    ],
)
def test_only_graphs_that_round_are_allowed_the_wider_tolerance(
    artifact: Path, recipe: str, target: str, allowed: float
) -> None:
    manifest = Artifact.open(artifact).manifest
    manifest = replace(manifest, recipe=recipe, precision=load_recipe(recipe).values())
    assert tolerance(manifest, target) == allowed
