"""The arithmetic of sizes, beside the modules, the known counts of the release, and real files."""

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from calibration.data.conversations import Conversations, DataOptions
from calibration.data.samples import encode
from calibration.passes.runs import Samples
from calibration.passes.streaming import Pass
from export.checkpoint.reader import Checkpoint
from export.graph.journal import Journal
from export.graph.weights_file import PAGE_BYTES, lay_out, write_weights
from export.graphs import DTYPES, plan_graphs
from export.quantised.places import places
from export.quantised.scales_file import GraphScales
from export.quantised.storage import quantised_places, stored_values
from export.recipe.fit import check_recipe
from export.recipe.reading import load_recipe, parse_recipe, recipe_names
from export.recipe.recipe import PARTS, Recipe
from export.recipe.sizes import (
    PART_NAMES,
    PartSize,
    graph_bytes,
    parameters,
    part_sizes,
    recipe_of,
    total_size,
)
from export.sources import parameter_sources
from export.synthetic.configs import CONFIGS
from runtime import names
from runtime.config import KimiVLConfig
from runtime.prompt.encoder import PromptEncoder

NANO = Path(__file__).parents[2] / "examples" / "nano" / "checkpoint"
FULL = KimiVLConfig.from_fields(CONFIGS["full"])
SIZES = {
    "tiny": KimiVLConfig.from_fields(CONFIGS["tiny"]),
    "nano": KimiVLConfig.load(NANO / "config.json"),
}
MIXED = """
base = "fp16"
[parts.vision]
weights = "nvfp4"
activations = "nvfp4"
[parts.projector]
weights = "int8"
group = 16
[parts.attention]
weights = "int4"
group = 32
balance = "activation-aware"
[parts.kv_b]
weights = "nvfp4"
[parts.dense_mlp]
weights = "int8"
activations = "fp8"
scale = "dynamic"
[parts.experts]
weights = "int8"
group = 64
activations = "int8"
[parts.head]
weights = "fp8"
group = 128
activations = "fp8"
"""
"""What the named recipes do not have: other groups, kv_b, dynamic scales, NVFP4 in the tower."""


def all_recipes() -> dict[str, Recipe]:
    recipes = {name: load_recipe(name) for name in recipe_names()}
    return {**recipes, "mixed": parse_recipe(MIXED, "mixed", "mixed")}


RECIPES = all_recipes()


def full_parts(name: str) -> dict[str, PartSize]:
    found, recipe = parameters(FULL), RECIPES[name]
    sizes = {part.part: part for part in part_sizes(found, recipe)}
    return {**sizes, "total": total_size(found, recipe)}


def test_the_release_has_the_known_number_of_parameters() -> None:
    parts = full_parts("bf16")
    assert parts["total"].parameters == 16_407_656_048
    assert {name: part.parameters for name, part in parts.items() if name != "total"} == {
        "vision": 27 * (3456 * 1152 + 1152 * 1152 + 2 * 4304 * 1152),
        "projector": 4608 * 4608 + 2048 * 4608,
        "attention": 27 * (6_291_456 + 1_179_648 + 4_194_304),  # q, kv_a, o
        "kv_b": 27 * 2_097_152,
        "dense_mlp": 69_206_016,
        "experts": 26 * 553_648_128,
        "shared_experts": 26 * 17_301_504,
        "head": 335_544_320,
        "embedding": 335_544_320,
        # Patch embedding and position table 678,528 + 4,718,592; 27 blocks of 4 x 1152 in norms
        # and 3456 + 1152 + 4304 + 1152 in biases; the tower's last norm; the projector's norm and
        # biases; the router 26 x (64 x 2048 + 64); 27 x (2 x 2048 + 512) and 2048 in norms.
        "other": 5_397_120
        + 27 * (4 * 1152 + 10_064)
        + 2304
        + (2304 + 4608 + 2048)
        + 26 * 131_136
        + 27 * 4608
        + 2048,
    }


def test_one_token_reads_the_known_number_of_parameters() -> None:
    # 2,243,685,888 without embedding and head; the head; 26 x 64 router biases; a row of the table.
    active = 2_243_685_888 + 335_544_320 + 1664 + 2048
    assert full_parts("bf16")["total"].active_parameters == active
    # In bf16 twice that; the router's 26 x (64 x 2048 + 64) numbers take two bytes more.
    assert full_parts("bf16")["total"].active_bytes == 2 * active + 2 * 26 * 131_136
    assert full_parts("fp32")["total"].active_bytes == 4 * active


def test_one_token_reads_1_6_gb_of_an_int4_release() -> None:
    parts = full_parts("int4")
    # Half a byte a number and two bytes for 128 of them: 0.515625 bytes.
    four_bits = 314_966_016 + 69_206_016 + 449_839_104 + 26 * 6 * 8_650_752
    kv_b, head = 2 * 56_623_104, 335_544_320 + 2 * 163_840
    total = parts["total"].active_bytes
    assert total == 0.515625 * four_bits + kv_b + head + parts["other"].active_bytes + 2 * 2048
    assert 1.55e9 < total < 1.65e9
    # Experts: 14.39e9 x 0.515625 = 7.42e9; with bf16 they would be 28.8e9.
    assert parts["experts"].stored_bytes == 0.515625 * 26 * 553_648_128
    assert 9.4e9 < parts["total"].stored_bytes < 9.5e9


def test_nvfp4_has_a_byte_for_sixteen_inputs_and_a_number_for_a_matrix() -> None:
    parts = full_parts("nvfp4")
    count = 26 * 553_648_128
    # Of each layer three stacks, each with one fp32 number; and one for what meets gate and up
    # together, one for what meets down.
    assert parts["experts"].code_bytes == count // 2
    assert parts["experts"].scale_bytes == count // 16 + 26 * (3 + 2) * 4


def test_tower_and_projector_are_not_read_for_a_token() -> None:
    parts = full_parts("bf16")
    assert parts["vision"].active_bytes == parts["projector"].active_bytes == 0
    assert parts["embedding"].active_bytes == 2 * 2048


def test_fewer_layers_are_only_those_layers() -> None:
    all_of_them = {one.name: one for one in parameters(FULL)}
    kept = {one.name: one for one in parameters(FULL, (0, 5))}
    graphs = {one.graph for one in kept.values()}
    assert graphs == {"vision", "projector", "layer_00", "layer_05", "head", "embedding"}
    assert kept == {name: one for name, one in all_of_them.items() if one.graph in graphs}


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_those_of_the_modules(size: str) -> None:
    config = SIZES[size]
    found = {one.name: one for one in parameters(config) if one.graph != names.EMBEDDING}
    counts: dict[str, int] = {}
    matrices: dict[str, tuple[str, tuple[int, ...]]] = {}
    layers = range(config.decoder.num_layers)
    for plan in plan_graphs(config, torch.float32, layers, taps=False):
        module = plan.build()
        of_graph = {plan.prefix + name: one.numel() for name, one in module.named_parameters()}
        assert {found[name].graph for name in of_graph} == {plan.name}
        counts |= of_graph
        for place in places(module):
            shape = tuple(module.get_parameter(place.parameter).shape)
            matrices[plan.prefix + place.parameter] = (place.part, shape)
    assert {name: one.count for name, one in found.items()} == counts
    quantisable = {name: one for name, one in found.items() if one.part in PARTS}
    assert {name: (one.part, one.shape) for name, one in quantisable.items()} == matrices


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return Checkpoint.open(NANO)


@pytest.fixture(scope="module")
def scales(nano: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scales of every quantised recipe by calibration, in one pass over few samples."""
    options = DataOptions(data="nano-calibration", max_samples=4, max_held_out=1)
    root = tmp_path_factory.mktemp("calibrated")
    way = Pass(
        checkpoint=nano,
        folder=root / "calibration",
        samples=encoded(nano, options),
        recipes=[recipe for recipe in RECIPES.values() if recipe.is_quantised],
        layers=range(nano.config.decoder.num_layers),
        min_expert_tokens=1,
    )
    way.run(Journal(root, "calibrate", "sizes"), root)
    return root / "calibration" / "scales"


def encoded(nano: Checkpoint, options: DataOptions) -> Samples:
    sets, prompts = Conversations.load(options), PromptEncoder.load(nano.folder, nano.config)
    observed, held_out = (
        [encode(one, prompts, 2048) for one in some] for some in (sets.observed, sets.held_out)
    )
    return Samples(observed=observed, held_out=held_out)


@pytest.mark.parametrize("name", RECIPES)
def test_the_files_of_each_graph_have_the_bytes_that_were_counted(
    name: str, nano: Checkpoint, scales: Path, tmp_path: Path
) -> None:
    recipe = RECIPES[name]
    counted = graph_bytes(parameters(nano.config), recipe)
    layers = range(nano.config.decoder.num_layers)
    for plan in plan_graphs(nano.config, DTYPES[recipe.base], layers, taps=False):
        module = plan.build()
        found = GraphScales()
        if quantised_places(module, recipe):
            found = GraphScales.read(scales / name / f"{plan.name}.safetensors")
        sources = parameter_sources(module, plan.prefix, nano)
        values = stored_values(sources, module, recipe, found)
        record = write_weights(tmp_path / f"{plan.name}.bin", values)
        tensors = sum(place.length for place in lay_out(values).values())
        assert tensors == counted[plan.name]
        assert 0 <= record.bytes - tensors < PAGE_BYTES * len(values)


def test_a_finished_artifact_has_the_bytes_that_were_counted(artifact: Path) -> None:
    """Each file, less the gaps that the graph's offsets show."""
    manifest: dict[str, Any] = json.loads((artifact / "manifest.json").read_text())
    counted = graph_bytes(parameters(SIZES["tiny"]), RECIPES["fp32"])
    embedding = manifest["embedding"]["path"]
    assert (artifact / embedding).stat().st_size == counted.pop(names.EMBEDDING)
    assert counted.keys() == manifest["graphs"].keys()
    for name, path in manifest["graphs"].items():
        found = [one.const_value for one in ir.load(artifact / path).graph.initializers.values()]
        stored = [one for one in found if isinstance(one, ir.ExternalTensor)]
        places = sorted((one.offset or 0, one.length or 0) for one in stored)
        ends = [0, *(offset + length for offset, length in places)]
        gaps = sum(offset - end for (offset, _), end in zip(places, ends, strict=False))
        size = (artifact / "graphs" / "weights" / f"{name}.bin").stat().st_size
        assert size == ends[-1] == counted[name] + gaps


def test_sizes_of_parts_add_up_to_those_of_graphs() -> None:
    for recipe in RECIPES.values():
        found = parameters(FULL)
        by_graph, total = graph_bytes(found, recipe), total_size(found, recipe)
        assert sum(by_graph.values()) == total.stored_bytes
        assert sum(part.stored_bytes for part in part_sizes(found, recipe)) == total.stored_bytes
        assert {one.part for one in found} == set(PART_NAMES)


def test_a_part_is_looked_up_by_the_name_of_a_parameter() -> None:
    found = {one.name: one for one in parameters(FULL, (1,))}
    prefix = "language_model.model.layers.1.mlp"
    recipe = RECIPES["int4"]
    assert recipe_of(found[f"{prefix}.gate.weight"], recipe) is None
    assert recipe_of(found[f"{prefix}.experts.up_proj"], recipe) == recipe.parts["experts"]


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("config", [FULL, SIZES["nano"]], ids=["full", "nano"])
def test_every_named_recipe_fits_the_release_and_nano(name: str, config: KimiVLConfig) -> None:
    assert check_recipe(RECIPES[name], config) == []


def vision_recipe(text: str) -> Recipe:
    return parse_recipe(f"[parts.vision]\n{text}", "mine", "mine")


def test_groups_that_do_not_divide_a_matrix_are_named_with_what_would() -> None:
    recipe = vision_recipe('weights = "int4"\ngroup = 128')
    assert check_recipe(recipe, FULL) == [
        "parts.vision: groups of 128 (int4) do not divide the inputs of "
        "vision_tower.encoder.blocks.*.mlp.fc1 (4304): use nvfp4 (groups of 16) or int8 without a "
        "group or fp8 without a group"
    ]
    (problem,) = check_recipe(recipe, SIZES["nano"])
    for matrix in ("wqkv (144)", "wo (144)", "mlp.fc0 (144)", "mlp.fc1 (592)"):
        assert matrix in problem
    assert "nvfp4 (groups of 16)" in problem


@pytest.mark.parametrize("text", ['weights = "nvfp4"', 'weights = "int8"', 'weights = "fp8"'])
def test_what_would_work_does(text: str) -> None:
    for config in (FULL, SIZES["nano"]):
        assert check_recipe(vision_recipe(text), config) == []


def test_smaller_groups_are_offered_where_they_divide() -> None:
    (problem, *_) = check_recipe(load_recipe("int4"), SIZES["tiny"])
    assert "self_attn.q_proj (64)" in problem
    assert "self_attn.o_proj (80)" in problem  # 80 = 16 x 5: no groups of 32 either
    assert problem.endswith("nvfp4 (groups of 16) or int8 without a group or fp8 without a group")
    dense = parse_recipe('[parts.dense_mlp]\nweights = "int4"\ngroup = 128', "mine", "mine")
    (problem,) = check_recipe(dense, SIZES["tiny"])  # 64 and 96 inputs
    assert "use int4 with group = 32 or nvfp4" in problem


def test_nvfp4_does_not_fit_every_model() -> None:
    problems = check_recipe(load_recipe("nvfp4"), SIZES["tiny"])
    assert len(problems) == 1
    assert "experts.down_proj (40): use int8 without a group" in problems[0]
