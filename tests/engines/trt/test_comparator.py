"""Neutral and lowered graphs side by side in Polygraphy's comparator, both in ONNX Runtime."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from engines.job import load_graph, write_graph
from engines.lowering import lower
from engines.trt.home import Home
from engines.trt.passes import LoweringOptions, passes
from engines.trt.passes.options import ExpertsForm
from examples.nano.score import HERE
from export.checkpoint.reader import Checkpoint
from export.recipe.reading import load_recipe
from export.stage import ExportOptions, export_checkpoint
from runtime.config import KimiVLConfig
from runtime.prompt.patches import position_weights

CAPACITY = 16
TOLERANCE = 1e-5
"""Absolute and relative: both compute in fp32, in another order."""

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano's neutral graphs in fp32, with their weights; tests write beside them."""
    folder = tmp_path_factory.mktemp("comparator") / "artifact"
    options = ExportOptions(recipe=load_recipe("fp32"))
    export_checkpoint(Checkpoint.open(HERE / "checkpoint"), folder, options)
    return folder / "graphs"


def inputs_of(graph: str, config: KimiVLConfig) -> Arrays:
    random = np.random.default_rng(len(graph))

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    vision, decoder = config.vision, config.decoder
    if graph == "vision":
        return {
            "patches": normal(6, 10, vision.patch_values),
            "row_weights": position_weights(6, vision.table_height),
            "column_weights": position_weights(10, vision.table_width),
        }
    if graph == "projector":
        return {"merged": normal(7, 4, vision.width)}
    hidden = normal(2, 3, decoder.width)
    if graph == "head":
        return {"hidden": hidden, "rows": np.array([0, 5, 2])}
    cache = normal(2, 1, CAPACITY, decoder.latent_width)
    return {"hidden": hidden, "cache": cache, "lengths": np.array([4, 9])}


@pytest.mark.parametrize(
    ("graph", "experts"),
    [
        ("vision", "plugin"),
        ("projector", "plugin"),
        ("head", "plugin"),
        ("layer_00", "plugin"),
        ("layer_01", "plugin"),
        ("layer_01", "conditional"),
        ("layer_01", "gather"),
        ("layer_01", "dense"),
    ],
)
def test_a_lowered_graph_gives_what_the_neutral_one_gives(
    graph: str, experts: ExpertsForm, graphs: Path, tmp_path: Path
) -> None:
    Home.load("rtx")  # binds Polygraphy, as every other test does
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    folder = shutil.copytree(graphs, tmp_path / "graphs")
    options = LoweringOptions(
        max_tokens=CAPACITY,
        sms=(89,),
        experts=experts,
        weights="embedded",
        cache_reads="capacity",
    )
    model = lower(load_graph(folder / f"{graph}.onnx"), passes(options)).model
    write_graph(folder / "lowered.onnx", model)
    runners = [
        OnnxrtRunner(SessionFromOnnx(str(folder / name)))
        for name in (f"{graph}.onnx", "lowered.onnx")
    ]
    feed = inputs_of(graph, Checkpoint.open(HERE / "checkpoint").config)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = Comparator.run(runners, data_loader=[feed])
        close = SimpleCompareFunc(atol=TOLERANCE, rtol=TOLERANCE)
        assert bool(Comparator.compare_accuracy(results, compare_func=close))
        turned = {name: np.flip(values, 0).copy() for name, values in feed.items()}
        others = Comparator.run(runners[1:], data_loader=[turned])
        results[1] = (results[1][0], others[0][1])
        assert not bool(Comparator.compare_accuracy(results, compare_func=close))
