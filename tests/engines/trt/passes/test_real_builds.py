"""Lowered graphs built by TensorRT-RTX for real, with weights as inputs of the network.

Nothing is run: there is no device. What the graphs mean is seen to elsewhere, in ONNX Runtime.
"""

from pathlib import Path

import onnx_ir as ir
import pytest

from engines.lowering import lower
from engines.passes.chain_layers import chain_layers
from engines.trt.builder import BuiltPlan, build_plan
from engines.trt.home import Home
from engines.trt.passes import LoweringOptions, passes
from engines.trt.passes.layer_experts import LAYER
from engines.trt.passes.options import ExpertsForm, WeightsPlace
from engines.trt.profiles import ShapeRange, Shapes
from engines.trt.sm import parse_target
from runtime.errors import UnsupportedError
from runtime.names import BEST, CACHE, CACHE_OUT, ENERGY, HIDDEN_OUT, LOGITS, place_name
from runtime.plugins.launch import PLUGIN_OPS

from ..plan_header import read_header
from .layers import CONFIG, DENSE, MAX_TOKENS, MOE, lowered, recipe, write_layer
from .plans import build, layer_shapes, parse

TOKENS = {"gather": 1, "dense": 128, "conditional": 128, "plugin": 32, "layer": 8}
"""The most of a step, by form."""
SHARED_BYTES = 1 << 15
"""Sizes, axes, tables of bytes; the weights of the smallest layer in 4 bits are 100 kB."""

CASES = [
    ("fp16", ("",), 89),
    ("bf16", ("",), 89),
    ("fp32", ("",), 89),
    ("bf16", ("int8", "int8"), 89),
    ("bf16", ("int8", "int8", "dynamic"), 89),
    ("fp16", ("int8",), 89),
    ("bf16", ("fp8", "fp8"), 89),
    ("fp16", ("fp8", "fp8", "dynamic"), 89),
    ("bf16", ("fp8",), 89),
    ("bf16", ("int4",), 89),
    ("bf16", ("int4", "fp8"), 89),
    ("bf16", ("nvfp4", "nvfp4"), 120),
    ("bf16", ("nvfp4",), 120),
    ("fp16", ("int8", "int8"), 75),
]


def options(form: ExpertsForm, sm: int) -> LoweringOptions:
    return LoweringOptions(max_tokens=MAX_TOKENS, sms=(sm,), experts=form)


def build_layer(
    home: Home, folder: Path, case: tuple[str, tuple[str, ...], int], form: ExpertsForm, layer: int
) -> BuiltPlan:
    base, formats, sm = case
    model = lowered(write_layer(folder, recipe(base, *formats), layer=layer), options(form, sm))
    profiles = [layer_shapes(TOKENS[form])]
    return build(home, model, folder, profiles, f"rtx:sm{sm}")


GATHERED = [("gather", CASES[index]) for index in (0, 3, 7, 10, 11)]


@pytest.mark.parametrize(
    ("form", "case"), [*GATHERED, *(("dense", case) for case in CASES)], ids=str
)
def test_standard_ops_build_in_every_format(
    form: ExpertsForm, case: tuple[str, tuple[str, ...], int], home: Home, tmp_path: Path
) -> None:
    plan = build_layer(home, tmp_path, case, form, MOE)
    assert plan.weights_bytes < SHARED_BYTES
    assert plan.decomposed == ()


@pytest.mark.parametrize("case", [CASES[index] for index in (0, 3, 10, 11)], ids=str)
def test_a_layer_without_experts_builds(
    case: tuple[str, tuple[str, ...], int], home: Home, tmp_path: Path
) -> None:
    assert build_layer(home, tmp_path, case, "dense", DENSE).weights_bytes < SHARED_BYTES


@pytest.mark.parametrize("case", [CASES[index] for index in (0, 4)], ids=str)
def test_both_branches_build_in_one_plan(
    case: tuple[str, tuple[str, ...], int], home: Home, tmp_path: Path
) -> None:
    assert build_layer(home, tmp_path, case, "conditional", MOE).weights_bytes < SHARED_BYTES


@pytest.mark.parametrize("case", [CASES[index] for index in (6, 9)], ids=str)
def test_plugins_take_the_place_of_bodies(
    case: tuple[str, tuple[str, ...], int], home: Home, tmp_path: Path
) -> None:
    base, formats, sm = case
    model = lowered(write_layer(tmp_path, recipe(base, *formats)), options("plugin", sm))
    parsed = parse(home, model, tmp_path)
    plugins = [layer.name for layer in parsed.facts.layers if layer.kind == "PLUGIN_V3"]
    assert len(plugins) == len(PLUGIN_OPS)
    profiles = [layer_shapes(1), layer_shapes(TOKENS["plugin"])]
    assert build(home, model, tmp_path, profiles).weights_bytes < SHARED_BYTES


NEEDED = [
    ("widen-mixed-products", CASES[10], "opndA->type|is_constant"),
    ("scale-stacked-products", CASES[6], "is_constant"),
    ("share-fp4-scale", CASES[11], "must be an initializer"),
    ("stack-rounding", CASES[11], "Unsupported op"),
    ("static-cache", CASES[0], "static sequence length"),
    ("sum-router-products", CASES[13], "FP32 GEMM is not supported"),
]


@pytest.mark.parametrize(("name", "case", "words"), NEEDED, ids=[one[0] for one in NEEDED])
def test_without_a_pass_there_is_no_plan(
    name: str,
    case: tuple[str, tuple[str, ...], int],
    words: str,
    home: Home,
    tmp_path: Path,
) -> None:
    base, formats, sm = case
    steps = [step for step in passes(options("dense", sm)) if step.name != name]
    model = lower(ir.load(write_layer(tmp_path, recipe(base, *formats))), steps).model
    with pytest.raises(UnsupportedError, match=words):
        build(home, model, tmp_path, [layer_shapes(TOKENS["dense"])], f"rtx:sm{sm}")


def test_a_chain_of_layers_is_one_plan(home: Home, tmp_path: Path) -> None:
    layers = [
        lowered(
            write_layer(tmp_path, recipe("bf16", "int4"), layer=layer, seed=layer),
            options("gather", 89),
        )
        for layer in (DENSE, MOE)
    ]
    chain = chain_layers(layers, "chain")
    caches = [place_name(place, CACHE) for place in range(2)]
    plan = build(home, chain, tmp_path, [layer_shapes(1, caches)])
    assert plan.weights_bytes < 2 * SHARED_BYTES
    outputs = [HIDDEN_OUT, *(place_name(place, CACHE_OUT) for place in range(2))]
    assert [value.name for value in chain.graph.outputs] == outputs


def test_the_parser_makes_one_layer_of_the_experts_where_devices_have_it(
    home: Home, tmp_path: Path
) -> None:
    model = lowered(write_layer(tmp_path, recipe("fp16")), options("layer", 100))
    parsed = parse(home, model, tmp_path)
    network = parsed.network
    kinds = {layer.name: layer.type for layer in map(network.get_layer, range(network.num_layers))}
    (found,) = (
        layer
        for layer in map(network.get_layer, range(network.num_layers))
        if layer.type == home.trt.LayerType.MOE
    )
    assert LAYER in found.name
    assert len(kinds) == network.num_layers
    assert tuple(found.get_output(0).shape) == (1, -1, 128)
    found.__class__ = home.trt.IMoELayer
    assert found.activation_type == home.trt.MoEActType.SILU


WIDTH = CONFIG.vision.width
ROWS = CONFIG.vision.table_height
GRAPHS: dict[str, Shapes] = {
    "vision": {
        "patches": ShapeRange((2, 2, 588), (8, 12, 588), (16, 16, 588)),
        "row_weights": ShapeRange((2, ROWS), (8, ROWS), (16, ROWS)),
        "column_weights": ShapeRange((2, ROWS), (12, ROWS), (16, ROWS)),
    },
    "projector": {"merged": ShapeRange((1, 4, WIDTH), (24, 4, WIDTH), (64, 4, WIDTH))},
    "head": {
        "hidden": ShapeRange((1, 1, 128), (1, 1, 128), (2, 8, 128)),
        "rows": ShapeRange((1,), (1,), (2,)),
    },
}


@pytest.mark.parametrize("case", [CASES[index] for index in (0, 2, 6)], ids=str)
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_other_graphs_build_and_attention_is_fused_in_16_bits(
    graph: str, case: tuple[str, tuple[str, ...], int], home: Home, tmp_path: Path
) -> None:
    base, formats, sm = case
    path = write_layer(tmp_path, recipe(base, *formats), graph=graph)
    plan = build(home, lowered(path, options("dense", sm)), tmp_path, [GRAPHS[graph]])
    attentions = CONFIG.vision.num_layers if graph == "vision" else 0
    assert len(plan.decomposed) == (attentions if base == "fp32" else 0)
    assert plan.weights_bytes < SHARED_BYTES


EMBEDDED = [("embedded", CASES[index]) for index in (0, 3, 6, 9, 11)]


@pytest.mark.parametrize(
    ("weights", "case"), [*(("external", case) for case in CASES), *EMBEDDED], ids=str
)
def test_a_head_gives_logits_and_their_best_in_every_format(
    weights: WeightsPlace, case: tuple[str, tuple[str, ...], int], home: Home, tmp_path: Path
) -> None:
    base, formats, sm = case
    asked = LoweringOptions(max_tokens=MAX_TOKENS, sms=(sm,), experts="dense", weights=weights)
    model = lowered(write_layer(tmp_path, recipe(base, *formats), graph="head"), asked)
    parsed = parse(home, model, tmp_path)
    outputs = map(parsed.network.get_output, range(parsed.network.num_outputs))
    assert [(one.name, one.dtype.name, tuple(one.shape)) for one in outputs] == [
        (LOGITS, "FLOAT", (-1, CONFIG.decoder.vocab_size)),
        (BEST, "INT32", (-1,)),
        (ENERGY, "FLOAT", (-1,)),
    ]
    path = tmp_path / "head.plan"
    build_plan(parsed, parse_target(f"rtx:sm{sm}"), [GRAPHS["head"]], path)
    content = path.read_bytes()
    assert all(name.encode() in content for name in (LOGITS, BEST, ENERGY))


def test_one_head_is_built_for_two_cards(home: Home, tmp_path: Path) -> None:
    path = write_layer(tmp_path, recipe("bf16", "fp8", "fp8"), graph="head")
    model = lowered(path, LoweringOptions(max_tokens=MAX_TOKENS, sms=(89, 120), experts="dense"))
    plan = build(home, model, tmp_path, [GRAPHS["head"]], "rtx:sm89+sm120")
    assert read_header(plan.path.read_bytes()).sms == (89, 120)
