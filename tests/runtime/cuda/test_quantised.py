"""A quantised model through target `cuda`: codes of 4 and 8 bits, activations that a recipe rounds.

Layers compute in fp16, on the CPU's kernels of `MatMulNBits` and `QMoE`.
"""

from pathlib import Path

import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from calibration.data.examples import load_examples
from calibration.evaluate import evaluate
from calibration.verify import verify_artifact
from engines.build import build_target
from engines.cuda.costs import build_cost
from engines.work import Work
from examples.nano.score import HERE
from export.recipe.reading import recipe_from_values
from runtime import Session
from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig
from runtime.engine.cuda.engine import CudaEngine
from runtime.generation.releases import stop_ids
from runtime.prompt.encoder import PromptEncoder
from tests.executing_trt import HostDevice
from tests.runtime.conftest import CUDA_SIZES
from tool import app

from .conftest import HOST

pytestmark = pytest.mark.slow

RECIPE = """
base = "fp16"
may_round_activations = true
[parts.vision]
weights = "int8"
activations = "int8"
[parts.attention]
weights = "int4"
group = 32
[parts.dense_mlp]
weights = "int4"
group = 64
[parts.experts]
weights = "int8"
activations = "int8"
[parts.shared_experts]
weights = "int8"
activations = "int8"
[parts.head]
weights = "int8"
"""
FEW = ("--max-samples", "16", "--max-held-out", "4", "--max-fallback-experts", "1")
UNROUNDED = 1e-5
"""The module that verify holds graphs to rounds where the CPU's kernels do, and nowhere else."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    recipe = folder / "mine.toml"
    recipe.write_text(RECIPE)
    words = ["calibrate", str(HERE / "checkpoint"), str(folder / "artifact")]
    words += ["--recipe", str(recipe), "--data", "nano-calibration", "--held-out", "nano", *FEW]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    build_target(folder / "artifact", "cuda", CUDA_SIZES)
    return folder / "artifact"


def test_no_activation_is_rounded_and_no_code_is_widened(made: Path) -> None:
    graph = ir.load(made / "graphs/decoder.cuda.onnx").graph
    used = {node.op_type for node in graph}
    assert {"MatMulNBits", "QMoE"} < used
    assert not {"QuantizeLinear", "DequantizeLinear"} & used


def test_shared_experts_are_among_the_routed_ones(made: Path) -> None:
    decoder = KimiVLConfig.load(Artifact.open(made).model_folder / "config.json").decoder
    graph = ir.load(made / "graphs/decoder.cuda.onnx").graph
    chosen = {node.attributes["k"].as_int() for node in graph if node.op_type == "QMoE"}
    assert chosen == {decoder.experts_per_token + decoder.num_shared_experts}


def test_every_graph_means_what_its_recipe_says_but_for_that_rounding(made: Path) -> None:
    figures = verify_artifact(made, "cuda").parity["cuda"]
    assert max(figures.values()) < UNROUNDED


def test_questions_are_answered(made: Path) -> None:
    artifact = Artifact.open(made)
    engine = CudaEngine(artifact, provider=HOST, device=HostDevice())
    config = KimiVLConfig.load(artifact.model_folder / "config.json")
    encoder = PromptEncoder.load(artifact.model_folder, config)
    ends = stop_ids(config, artifact.model_folder, encoder.tokenizer)
    session = Session(engine, encoder, stop_ids=ends)
    assert evaluate(session, load_examples("nano")[:16], max_new_tokens=48).exact_match > 0.9


def test_the_build_leaves_as_many_bytes_as_were_told(made: Path) -> None:
    artifact = Artifact.open(made)
    manifest = artifact.manifest
    work = Work(
        config=KimiVLConfig.load(artifact.model_folder / "config.json"),
        recipe=recipe_from_values(manifest.precision, manifest.recipe, "here"),
        layers=manifest.layers,
        limits=manifest.targets["cuda"].limits,
    )
    graphs = [ir.load(made / path).graph for path in manifest.targets["cuda"].graphs.values()]
    tensors = [value.const_value for graph in graphs for value in graph.initializers.values()]
    left = sum(
        one.length or 0
        for one in tensors
        if isinstance(one, ir.ExternalTensor) and str(one.location).endswith(".cuda.bin")
    )
    assert build_cost(work).left_bytes == left > 2e6  # the gaps between tensors left out
