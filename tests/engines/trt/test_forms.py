"""Which experts a build gets; quick plugins in the place of plugins that carry their kernels."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from engines.build import check_build
from engines.job import load_graph
from engines.kernels.compile import compile_kernel
from engines.kernels.quick_plugins import quick_name
from engines.lowering import lower
from engines.options import BuildOptions, PlanOptions
from engines.trt.forms import experts_form, plugin_ops
from engines.trt.passes import LoweringOptions, passes
from engines.trt.passes.external_weights import ExternalWeights
from engines.trt.passes.quick_nodes import QuickNodes
from engines.trt.shapes import aligned_limits
from examples.nano.score import HERE
from export.checkpoint.reader import Checkpoint
from export.recipe.reading import load_recipe, parse_recipe
from export.stage import ExportOptions, export_checkpoint
from runtime.artifact.records import CacheRecord, CacheTensor
from runtime.errors import InputError, UnsupportedError
from runtime.limits import Limits


@pytest.mark.parametrize(
    ("recipe", "sms", "use_plugins", "expected"),
    [
        ("fp16", (89, 120), True, "plugin"),
        ("fp16", (89, 120), False, "conditional"),
        ("fp16", (75, 89), True, "conditional"),
        ("int4", (80,), True, "plugin"),
        ("fp8", (89,), True, "plugin"),
        ("fp8", (86, 89), True, "dense"),
        ("nvfp4", (120,), True, "dense"),
        ("int8", (89,), False, "conditional"),
        ("bf16", (100,), False, "layer"),
        ("bf16", (100, 120), False, "conditional"),
    ],
)
def test_kernels_are_taken_where_all_cards_have_them(
    recipe: str, sms: tuple[int, ...], use_plugins: bool, expected: str
) -> None:
    assert experts_form(load_recipe(recipe), sms, use_plugins=use_plugins) == expected


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs of nano in fp32, without a target."""
    folder = tmp_path_factory.mktemp("forms") / "artifact"
    options = ExportOptions(recipe=load_recipe("fp32"))
    export_checkpoint(Checkpoint.open(HERE / "checkpoint"), folder, options)
    return folder / "graphs"


def test_quick_plugins_of_a_graph_are_those_that_are_registered(lowered: Path) -> None:
    config, recipe = Checkpoint.open(HERE / "checkpoint").config.decoder, load_recipe("fp32")
    ops = plugin_ops(config, recipe)
    options = LoweringOptions(max_tokens=16, sms=(90,), weights="embedded")
    model = lower(load_graph(lowered / "layer_01.onnx"), passes(options)).model
    plain = ir.to_proto(model).SerializeToString()
    quick = lower(model, [QuickNodes(ops)]).model
    found = [node for node in quick.graph if node.domain == "kimivl"]
    assert {node.op_type for node in found} == {quick_name(op) for op in ops}
    for node in found:
        assert node.attributes["aot"].as_int() == 1
        assert "code" not in node.attributes

    def run(content: bytes) -> list[np.ndarray]:
        made = ort.SessionOptions()
        made.log_severity_level = 3
        place = str(lowered.resolve())
        made.add_session_config_entry("session.model_external_initializers_file_folder_path", place)
        random = np.random.default_rng(0)
        inputs = {
            "hidden": random.standard_normal((1, 3, 128), dtype=np.float32),
            "cache": np.zeros((1, 1, 16, 144), np.float32),
            "lengths": np.array([0]),
            "window": np.zeros(4, np.int32),
        }
        found: list[np.ndarray] = ort.InferenceSession(content, made).run(None, inputs)
        return found

    for a, b in zip(run(ir.to_proto(quick).SerializeToString()), run(plain), strict=True):
        np.testing.assert_array_equal(a, b)


def test_plugins_of_another_model_are_not_renamed(lowered: Path) -> None:
    options = LoweringOptions(max_tokens=16, sms=(90,))
    steps = [one for one in passes(options) if one.name != ExternalWeights.name]
    model = lower(load_graph(lowered / "layer_01.onnx"), steps).model
    with pytest.raises(RuntimeError, match=r"quick-nodes .* requires: plugins of other ops"):
        lower(model, [QuickNodes([])])


@pytest.mark.parametrize(
    ("target", "plans", "message"),
    [
        ("rtx:sm89", PlanOptions(use_quick_plugins=True), "--quick-plugins is for target trt with"),
        (
            "trt",
            PlanOptions(use_quick_plugins=True, weights="embedded"),
            "--quick-plugins is for target trt with --weights external",
        ),
        ("trt", PlanOptions(use_quick_plugins=True, use_plugins=False), "contradict each other"),
        (
            "rtx:sm89",
            PlanOptions(weights="embedded", layers_per_engine=2),
            "--layers-per-engine needs --weights external",
        ),
        ("cpu", PlanOptions(weights="embedded"), "target cpu has no plans"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    target: str, plans: PlanOptions, message: str, lowered: Path
) -> None:
    options = BuildOptions(max_tokens=64, plans=plans)
    config = Checkpoint.open(HERE / "checkpoint").config
    with pytest.raises(InputError, match=message):
        check_build(target, options, config, lowered.parent / "model", load_recipe("fp16"))


def test_without_what_compiles_them_kernels_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "engines.kernels.triton_api", None)
    config = Checkpoint.open(HERE / "checkpoint").config.decoder
    op = plugin_ops(replace(config, width=config.width + 16), load_recipe("fp16"))[1]
    kernel = replace(op.variants[0].kernel, num_warps=2)  # one that nothing has compiled yet
    with pytest.raises(UnsupportedError, match=r"triton, .* is not installed .* --no-plugins"):
        compile_kernel(kernel, 89)


def test_a_capacity_is_raised_until_every_slot_begins_at_an_address() -> None:
    limits = Limits(
        max_tokens=523, max_input_tokens=500, max_slots=3, max_patches=64, prefill_chunk=8
    )
    cases = [(144, "float16", 528), (576, "bfloat16", 528), (129, "float16", 640)]
    for width, dtype, expected in cases:
        cache = CacheRecord(tensors={"cache": CacheTensor(dtype=dtype, width=width)})
        found = aligned_limits(limits, cache)
        assert found == replace(limits, max_tokens=expected)
        assert expected * width * 2 % 256 == 0


def test_ops_follow_the_recipe_of_the_experts() -> None:
    config = Checkpoint.open(HERE / "checkpoint").config.decoder
    recipe = parse_recipe('[parts.experts]\nweights = "int4"\ngroup = 32', "mine", "mine")
    inputs = {op.op: op.inputs for op in plugin_ops(config, recipe)}
    assert inputs["GroupedUp"][-4:] == ("INT4", "BF16", "INT4", "BF16")
