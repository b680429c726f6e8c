"""Layers and head as one graph: the same numbers as one by one, and nothing computed twice."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from calibration.skip_norms import skip_norms, split
from engines.passes.graph_edits import static_size
from runtime import names
from runtime.artifact.folder import Artifact
from runtime.engine.onnx_session import open_session, session_from_bytes
from tests.stock_runtime import error

Arrays = dict[str, NDArray[Any]]
SLOTS, TOKENS, CACHED = 2, 3, 9
LENGTHS = np.array([4, 1])
ROWS = np.array([5, 0, 2])
OTHER_ORDER = 1e-5
"""Of a sum of squares in fp32, by one kernel and by another, and what follows from it."""


@pytest.fixture(scope="module")
def opened(built: Path) -> Artifact:
    return Artifact.open(built)


@pytest.fixture(scope="module")
def graph(opened: Artifact) -> ir.Graph:
    decoder = opened.target("cuda").decoder
    assert decoder is not None
    return ir.load(opened.folder / decoder).graph


def run(artifact: Artifact, path: str, given: Arrays) -> Arrays:
    return results(open_session(artifact, path, num_threads=1), given)


def without_skip_norms(artifact: Artifact, path: str) -> ort.InferenceSession:
    """The joined graph as it was before sums and norms became one operator."""
    model = ir.load(artifact.folder / path)
    nodes = skip_norms(model.graph)
    for node in nodes:
        split(model.graph, node)
    assert len(nodes) == 2 * len(artifact.manifest.layers) - 1
    content = ir.to_proto(model).SerializeToString()
    return session_from_bytes(content, artifact.folder / path, num_threads=1)


def results(session: ort.InferenceSession, given: Arrays) -> Arrays:
    found = [one.name for one in session.get_outputs()]
    return dict(zip(found, session.run(None, given), strict=True))


def test_the_joined_graph_gives_what_layers_and_head_give_one_by_one(
    opened: Artifact, graph: ir.Graph
) -> None:
    record = opened.target("cuda")
    random = np.random.default_rng(3)
    width = {
        str(one.name): static_size(one, -1)
        for one in graph.inputs
        if one.name not in (names.LENGTHS, names.ROWS)
    }
    layers = opened.manifest.layers
    caches = [
        random.standard_normal((SLOTS, 1, CACHED, width["0.cache"]), dtype=np.float32)
        for _ in layers
    ]
    hidden = random.standard_normal((SLOTS, TOKENS, width["hidden"]), dtype=np.float32)
    expected: Arrays = {}
    state = hidden
    for place, (layer, cache) in enumerate(zip(layers, caches, strict=True)):
        given = {names.HIDDEN: state, names.CACHE: cache, names.LENGTHS: LENGTHS}
        found = run(opened, record.graphs[names.layer_name(layer)], given)
        expected[f"{place}.cache_out"], state = found[names.CACHE_OUT], found[names.HIDDEN_OUT]
    given = {names.HIDDEN: state, names.ROWS: ROWS}
    expected = {**run(opened, record.graphs[names.HEAD], given), **expected}
    assert record.decoder is not None
    named = {names.place_name(place, names.CACHE): cache for place, cache in enumerate(caches)}
    given = {names.HIDDEN: hidden, names.LENGTHS: LENGTHS, names.ROWS: ROWS, **named}
    apart = results(without_skip_norms(opened, record.decoder), given)
    found = run(opened, record.decoder, given)
    assert list(found) == list(apart) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(apart[name], values, err_msg=name)
        assert error(found[name], values) < OTHER_ORDER, name
    assert found[names.BEST].tolist() == found[names.LOGITS].argmax(axis=1).tolist()


def test_positions_angles_and_the_mask_are_computed_once(graph: ir.Graph) -> None:
    count = Counter(node.op_type for node in graph)
    layers = count["TensorScatter"]
    assert layers > 1
    assert count["Softmax"] == layers
    assert [count[name] for name in ("Cos", "Sin", "LessOrEqual")] == [1, 1, 1]


def test_rows_for_a_tokens_choice_are_made_once(graph: ir.Graph) -> None:
    rows = [node.inputs[0] for node in graph if node.op_type == "ScatterElements"]
    assert len(rows) > 1
    assert len(set(rows)) == 1
    assert Counter(node.op_type for node in graph)["Expand"] == 1


def test_no_body_is_left_that_a_provider_would_have_to_know(graph: ir.Graph) -> None:
    assert {node.domain for node in graph} == {"", "com.microsoft"}


def test_weights_lie_where_the_lowered_graphs_have_them(opened: Artifact, graph: ir.Graph) -> None:
    shared = 0
    for name in opened.manifest.graphs:
        if name in (names.VISION, names.PROJECTOR):
            continue
        lowered = ir.load(opened.folder / opened.target("cuda").graphs[name]).graph
        places = {_place(value) for value in lowered.initializers.values()} - {None}
        shared += len(places & {_place(value) for value in graph.initializers.values()})
    files = {place[0] for place in map(_place, graph.initializers.values()) if place}
    assert shared > 20
    assert files <= {Path(path).name for path in opened.manifest.files if path.endswith(".bin")}
    assert not any("decoder" in path and path.endswith(".bin") for path in opened.manifest.files)


def _place(value: ir.Value) -> tuple[str, int | None] | None:
    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor):
        return None
    return Path(tensor.location).name, tensor.offset


def test_no_two_values_and_no_two_nodes_share_a_name(graph: ir.Graph) -> None:
    given = [value for node in graph for value in node.outputs if value.name]  # or left out
    values = [value.name for value in given]
    values += [value.name for value in (*graph.inputs, *graph.initializers.values())]
    assert len(values) == len(set(values))
