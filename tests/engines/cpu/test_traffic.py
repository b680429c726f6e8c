"""Bytes of a token, read from lowered graphs, against the arithmetic on the config."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx_ir import from_onnx_text

from engines.cpu.traffic import Traffic, _read_graph
from export.recipe.sizes import parameters
from runtime import names
from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig


def test_a_token_reads_what_the_config_says_in_fp32(artifact: Path) -> None:
    opened = Artifact.open(artifact)
    config = KimiVLConfig.load(opened.model_folder / "config.json")
    others = (names.EMBEDDING, names.VISION, names.PROJECTOR)
    read = sum(
        4 * one.count * one.read
        for one in parameters(config, opened.manifest.layers)
        if one.graph not in others
    )
    found = Traffic.of(opened)
    assert found.at(0) == pytest.approx(float(read), rel=0.01)
    decoder = config.decoder
    moe = [layer for layer in opened.manifest.layers if layer >= decoder.num_dense_layers]
    assert [one.count for one in found.experts] == [decoder.num_experts] * len(moe)
    assert {one.chosen for one in found.experts} == {decoder.experts_per_token}
    latent = decoder.latent_rank + decoder.rope_size
    assert found.at(10) - found.at(0) == 10 * 4 * latent * len(opened.manifest.layers)


GRAPH = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1, "kimivl.cpu" : 1]>
g (float[N, 8] x, int64[N, 2] experts, float[N, 2] scores) => (float[N, 8] y) {
    wide = Cast <to = 1> (narrow)
    turned = Transpose (wide)
    a = MatMul (x, turned)
    b = MatMul (a, turned)
    c = Add (b, bias)
    y = kimivl.cpu.BlockExperts <num_computed = 3, num_shared = 1>
        (c, experts, scores, codes, scales)
}"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Weights in 16 bits, widened once and read twice; 5 experts, 2 chosen and 1 shared."""
    model = from_onnx_text(GRAPH)
    weights: dict[str, NDArray[Any]] = {
        "narrow": np.zeros((8, 8), dtype=np.float16),
        "bias": np.zeros(8, dtype=np.float32),
        "codes": np.zeros((5, 8, 4), dtype=np.uint8),
        "scales": np.zeros((5, 8, 1), dtype=np.float16),
    }
    values = {one.name: one for node in model.graph for one in node.inputs if one is not None}
    for name, array in weights.items():
        value = values[name]
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
        model.graph.register_initializer(value)
    path = tmp_path / "layer.onnx"
    ir.save(model, path)
    return path


def test_widened_weights_count_as_wide_once_and_experts_by_what_is_chosen(graph: Path) -> None:
    dense, (experts,) = _read_graph(graph, num_experts=99)
    assert dense == 8 * 8 * 4 + 8 * 4
    assert experts.bytes == 8 * 4 + 8 * 2
    assert (experts.count, experts.chosen, experts.shared) == (4, 2, 1)
    assert experts.read_bytes(1) == pytest.approx(3 * experts.bytes)
