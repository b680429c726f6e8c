"""Parsing: what TensorRT makes of a graph, and what it must not leave out in silence."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.external_data_helper import convert_model_to_external_data

from engines.trt.facts import TYPE_BITS
from engines.trt.home import Home
from engines.trt.network import FUSED_HEAD_SIZES, parse_network
from runtime.errors import ArtifactError, UnsupportedError

from .graphs import (
    OUT,
    WIDTH,
    attention,
    attention_shapes,
    build,
    linear,
    narrow,
    quantised,
    save_graph,
)


def refusal(home: Home, path: Path) -> str:
    with pytest.raises(UnsupportedError) as caught:
        parse_network(home, path)
    words = str(caught.value)
    assert words.startswith(f"{path}: {home.title} cannot take this graph: ")
    assert "\n" not in words
    return words


def test_facts_name_nodes_types_and_shapes(home: Home, tmp_path: Path) -> None:
    facts = parse_network(home, quantised(tmp_path, "int8", rounds=True)).facts
    (x,), (y,) = facts.inputs, facts.outputs
    assert (x.name, x.dtype, x.shape) == ("x", "fp16", (-1, WIDTH))
    assert (y.name, y.dtype, y.shape) == ("y", "fp16", (-1, OUT))
    kinds = {layer.node: layer.kind for layer in facts.layers}
    assert kinds["round"] == "QUANTIZE"
    assert kinds["unround"] == "DEQUANTIZE"
    assert kinds["proj"] == "MATRIX_MULTIPLY"
    (codes,) = [one for one in facts.constants if one.shape == (WIDTH, OUT)]
    assert (codes.dtype, codes.size_bytes) == ("int8", WIDTH * OUT)
    assert facts.producers["y"].node == "proj"


def test_nodes_in_functions_are_named_by_their_path(home: Home, tmp_path: Path) -> None:
    text = f"""g (float16[N, {WIDTH}] x) => (float16[N, {OUT}] y) {{ [outer] y = kimivl.F (x, w) }}
    <domain: "kimivl", opset_import: ["": 24]>
    F (x, w) => (y) {{ [inner] a = MatMul (x, w)  [last] y = Relu (a) }}"""
    path = save_graph(tmp_path / "f.onnx", text, {"w": np.ones((WIDTH, OUT), np.float16)})
    layers = parse_network(home, path).facts.layers
    assert [one.node for one in layers if one.kind != "CONSTANT"] == [
        "outer (F) / inner",
        "outer (F) / last",
    ]


def test_weights_beside_the_graph_are_found(home: Home, tmp_path: Path) -> None:
    inside = build(home, linear(tmp_path))
    model = onnx.load(linear(tmp_path))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, folder / "linear.onnx")
    assert (folder / "w.bin").stat().st_size >= 2 * WIDTH * OUT
    assert build(home, folder / "linear.onnx").sha256 == inside.sha256


def test_shapes_of_every_layer_follow_from_those_of_the_inputs(home: Home, tmp_path: Path) -> None:
    parsed = parse_network(home, linear(tmp_path))
    fixed = parsed.facts_at({"x": (7, WIDTH)})
    assert fixed.outputs[0].shape == (7, OUT)
    assert fixed.producers["y"].given[0].shape == (7, WIDTH)
    assert parsed.facts_at({}) == parsed.facts
    with pytest.raises(UnsupportedError, match="node proj"):
        parsed.facts_at({"x": (7, WIDTH + 1)})


def test_lengths_that_attention_does_not_honour_are_an_error(home: Home, tmp_path: Path) -> None:
    text = """g (float16[1, 2, S, 64] q, float16[1, 2, 8, 64] k, int64[1] lengths)
               => (float16[1, 2, S, 64] y) { [attend] y = Attention (q, k, k, , , , lengths) }"""
    words = refusal(home, save_graph(tmp_path / "lengths.onnx", text))
    assert "input lengths of node attend (Attention) is left out" in words


def test_an_input_that_no_output_depends_on_is_an_error(home: Home, tmp_path: Path) -> None:
    text = """g (float16[4] x, float16[4] z, float16[4] u) => (float16[4] y) {
        y = Relu (x)  [dead] d = Relu (z) }"""
    words = refusal(home, save_graph(tmp_path / "dead.onnx", text))
    assert "2 problems: input z of node dead (Relu) is left out" in words
    assert "input u is read by no node" in words


def test_an_input_whose_size_alone_counts_is_no_error(home: Home, tmp_path: Path) -> None:
    text = """g (float16[1, 4] x, float16[M, 8] u) => (float16[A, 4] y) {
        rows = Shape <start = 0, end = 1> (u)  shape = Concat <axis = 0> (rows, four)
        y = Expand (x, shape) }"""
    path = save_graph(tmp_path / "size.onnx", text, {"four": np.array([4], np.int64)})
    assert parse_network(home, path).facts.unread_inputs == ()


def test_a_condition_is_a_use(home: Home, tmp_path: Path) -> None:
    text = """g (float16[4] x, bool c) => (float16[4] y) {
        y = If (c) <then_branch = t () => (float16[4] a) { a = Relu (x) },
                    else_branch = e () => (float16[4] b) { b = Neg (x) }> }"""
    assert parse_network(home, save_graph(tmp_path / "if.onnx", text)).facts.unread_inputs == ()


def test_weights_that_would_be_clamped_are_an_error(home: Home, tmp_path: Path) -> None:
    text = "g (float[N, 4] x) => (float[N, 2] y) { n = Cast <to = 1> (w)  y = MatMul (x, n) }"
    path = save_graph(tmp_path / "wide.onnx", text, {"w": np.full((4, 2), 1e300)})
    assert "1 problem: " in refusal(home, path)
    assert "was clamped" in refusal(home, path)


def test_a_block_that_tensorrt_would_compute_otherwise_is_an_error(
    home: Home, tmp_path: Path
) -> None:
    text = """g (float16[N, 64] x) => (float16[N, 8] y) {
        [unround] wide = DequantizeLinear <axis = 0, block_size = 48> (w, s)
        y = MatMul (x, wide) }"""
    weights: dict[str, Any] = {
        "w": narrow("w", TensorProto.INT4, np.zeros((64, 8))),
        "s": np.ones((2, 8), np.float16),
    }
    words = refusal(home, save_graph(tmp_path / "blocks.onnx", text, weights))
    assert "node unround (DequantizeLinear): blocks of 48 do not divide axis 0 of 64" in words


def test_operands_of_two_types_are_an_error_with_the_node(home: Home, tmp_path: Path) -> None:
    text = "g (float16[N, 4] x) => (float[N, 2] y) { [mixed] y = MatMul (x, w) }"
    words = refusal(home, save_graph(tmp_path / "m.onnx", text, {"w": np.ones((4, 2), np.float32)}))
    assert "node mixed (MatMul): " in words
    assert "`A` is of type Half and `B` is of type Float" in words
    assert "cudaError" not in words
    assert ".cpp" not in words


def test_all_unknown_ops_are_named_at_once(home: Home, tmp_path: Path) -> None:
    text = """g (float[4] x) => (float[4] y, float[4] z) {
        [one] y = kimivl.Unheard (x)  [two] z = kimivl.Unseen (x) }"""
    words = refusal(home, save_graph(tmp_path / "unknown.onnx", text))
    assert "2 problems: node one (Unheard): " in words
    assert "node two (Unseen): " in words


def test_a_file_that_is_not_there_or_not_onnx_is_named(home: Home, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.onnx: cannot be read: No such file"):
        parse_network(home, tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(ArtifactError, match=r"text\.onnx: not an ONNX graph"):
        parse_network(home, tmp_path / "text.onnx")


def test_plugins_are_registered_before_the_parser_meets_one_and_only_then(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[Any] = []
    monkeypatch.setattr("engines.trt.network.register_plugins", registered.append)
    text = """g (float16[4] x) => (float16[4] y) {{ y = kimivl.Turn {} (x) }}
    <domain: "kimivl", opset_import: ["": 24]> Turn (x) => (y) {{ y = Neg (x) }}"""
    parse_network(home, save_graph(tmp_path / "body.onnx", text.format("")))
    assert registered == []
    named = text.format('<plugin_namespace = "elsewhere">')
    parse_network(home, save_graph(tmp_path / "plugin.onnx", named))
    assert registered == [home.trt]


def test_a_tensorrt_that_does_not_start_says_what_can_be_built(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_builder(_: object) -> None:
        home.logger.log(home.trt.ILogger.Severity.ERROR, "CUDA driver version is insufficient")
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(home.trt, "Builder", no_builder)
    with pytest.raises(UnsupportedError, match=r"does not start here: CUDA driver .*like rtx:sm89"):
        parse_network(home, linear(tmp_path))


@pytest.mark.parametrize(
    ("head_size", "dtype", "is_fused"),
    [(72, "float16", True), (128, "bfloat16", True), (576, "float16", False), (64, "float", False)],
)
def test_attention_without_a_kernel_is_decomposed_and_only_that(
    home: Home, tmp_path: Path, head_size: int, dtype: str, is_fused: bool
) -> None:
    path = attention(tmp_path, head_size, dtype)
    assert parse_network(home, path).decomposed == (() if is_fused else ("attend",))
    plan = build(home, path, profiles=attention_shapes(head_size))
    assert plan.decomposed == (() if is_fused else ("attend",))
    assert plan.size_bytes > 0


def test_head_sizes_without_any_implementation_are_refused(home: Home, tmp_path: Path) -> None:
    words = refusal(home, attention(tmp_path, 12))
    assert "node attend (Attention): a head size of 12 in fp16; pad it to a multiple of 8" in words
    assert 12 not in FUSED_HEAD_SIZES
    assert {72, 80, 128, 192, 256} <= set(FUSED_HEAD_SIZES)


def test_every_type_of_the_home_has_a_size(home: Home) -> None:
    words = {"FLOAT": "fp32", "HALF": "fp16"}
    names = home.trt.DataType.__members__
    assert {words.get(name, name.lower()) for name in names} == set(TYPE_BITS)
