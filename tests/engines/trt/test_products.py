"""Products: the work of each form by hand-counted numbers, and where weights come from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.trt.facts import Facts, Layer, Tensor
from engines.trt.home import Home
from engines.trt.network import parse_network
from engines.trt.products import Precision, Product, find_products

from .graphs import OUT, WIDTH, nvfp4, save_graph


def products(
    home: Home,
    tmp_path: Path,
    text: str,
    weights: dict[str, Any],
    *,
    bound: tuple[str, ...] = (),
    **shapes: tuple[int, ...],
) -> list[Product]:
    parsed = parse_network(home, save_graph(tmp_path / "products.onnx", text, weights))
    return find_products(parsed.facts_at(shapes), bound)


def half(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float16)


def test_rows_times_inputs_times_outputs(home: Home, tmp_path: Path) -> None:
    text = "g (float16[B, S, 16] x) => (float16[B, S, 8] y) { [proj] y = MatMul (x, w) }"
    (one,) = products(home, tmp_path, text, {"w": half(16, 8)}, x=(2, 3, 16))
    assert one == Product(
        node="proj",
        kind="MATRIX_MULTIPLY",
        weight="w",
        weight_bytes=2 * 16 * 8,
        precision=Precision(weights="fp16", activations="fp16"),
        multiply_adds=2 * 3 * 16 * 8,
    )


def test_a_turned_operand_is_as_much_work(home: Home, tmp_path: Path) -> None:
    text = "g (float16[N, 16] x) => (float16[N, 8] y) { y = Gemm <transB = 1> (x, w) }"
    (one,) = products(home, tmp_path, text, {"w": half(8, 16)}, x=(5, 16))
    assert one.multiply_adds == 5 * 16 * 8
    text = "g (float16[16, N] x) => (float16[N, 8] y) { y = Gemm <transA = 1> (x, w) }"
    (one,) = products(home, tmp_path, text, {"w": half(16, 8)}, x=(16, 5))
    assert one.multiply_adds == 5 * 16 * 8


def test_a_stack_of_experts_is_counted_once_for_each(home: Home, tmp_path: Path) -> None:
    text = """g (float16[1, N, 16] x, int64[K] chosen) => (float16[E, N, 8] y, float16[K, N, 8] z) {
        y = MatMul (x, w)  part = Gather <axis = 0> (w, chosen)  z = MatMul (x, part) }"""
    weights = {"w": half(4, 16, 8)}
    every, some = products(home, tmp_path, text, weights, x=(1, 5, 16), chosen=(2,))
    assert every.multiply_adds == 4 * 5 * 16 * 8
    assert some.multiply_adds == 2 * 5 * 16 * 8
    assert every.weight == some.weight == "w"


def test_einsum_and_convolution_and_attention_are_counted(home: Home, tmp_path: Path) -> None:
    text = """g (float16[2, 16] x) => (float16[2, 4, 8] y) {
        y = Einsum <equation = "nk, ekm -> nem"> (x, w) }"""
    (one,) = products(home, tmp_path, text, {"w": half(4, 16, 8)})
    assert one.multiply_adds == 2 * 16 * 4 * 8
    text = """g (float16[N, 4, 8, 8] x) => (float16[N, 6, 4, 4] y) {
        y = Conv <strides = [2, 2], group = 2> (x, w) }"""
    (one,) = products(home, tmp_path, text, {"w": half(6, 2, 2, 2)}, x=(3, 4, 8, 8))
    assert one.multiply_adds == 3 * 6 * 4 * 4 * (2 * 2 * 2)
    assert (one.precision.weights, one.weight_bytes) == ("fp16", 2 * 6 * 2 * 2 * 2)
    text = """g (float16[1, 2, S, 64] q, float16[1, 1, 8, 64] k) => (float16[1, 2, S, 64] y) {
        y = Attention (q, k, k) }"""
    (one,) = products(home, tmp_path, text, {}, q=(1, 2, 3, 64))
    assert one.multiply_adds == 2 * (2 * 3 * 8 * 64)
    assert one.weight == ""


def test_codes_are_found_through_what_does_not_change_them(home: Home, tmp_path: Path) -> None:
    text = """g (float16[N, 64] x) => (float16[N, 32] y) {
        wide = DequantizeLinear <axis = 1> (w, s)  full = Cast <to = 1> (wide)
        back = Cast <to = 10> (full)  turned = Transpose <perm = [1, 0]> (back)
        y = MatMul (x, turned) }"""
    weights = {"w": np.ones((32, 64), np.int8), "s": half(64)}
    (one,) = products(home, tmp_path, text, weights, x=(1, 64))
    assert one.precision == Precision(weights="int8", activations="fp16")
    assert (one.weight, one.weight_bytes) == ("w", 32 * 64)


def test_codes_turned_into_numbers_by_hand_are_still_codes(home: Home, tmp_path: Path) -> None:
    text = """g (float16[N, 64] x) => (float16[N, 32] y) {
        raw = Cast <to = 10> (w)  wide = Mul (raw, s)  y = MatMul (x, wide) }"""
    weights = {"w": np.ones((64, 32), np.int8), "s": half(32)}
    (one,) = products(home, tmp_path, text, weights, x=(1, 64))
    assert one.precision == Precision(weights="int8", activations="fp16")


def test_matrices_side_by_side_show_each_type(home: Home, tmp_path: Path) -> None:
    text = """g (float16[N, 64] x) => (float16[N, 64] y) {
        wide = DequantizeLinear <axis = 1> (a, s)  both = Concat <axis = 1> (wide, b)
        y = MatMul (x, both) }"""
    weights = {"a": np.ones((64, 32), np.int8), "s": half(32), "b": half(64, 32)}
    (one,) = products(home, tmp_path, text, weights, x=(1, 64))
    assert one.precision.weights == "fp16+int8"


def test_weights_as_inputs_are_weights_when_they_are_named(home: Home, tmp_path: Path) -> None:
    text = """g (float16[N, 64] x, int4[64, 32] w, float16[2, 32] s) => (float16[N, 32] y) {
        wide = DequantizeLinear <axis = 0, block_size = 32> (w, s)  y = MatMul (x, wide) }"""
    (one,) = products(home, tmp_path, text, {}, bound=("w", "s"), x=(4, 64))
    assert (one.weight, one.weight_bytes) == ("w", 64 * 32 // 2)
    assert one.precision == Precision(weights="int4", activations="fp16")
    (unnamed,) = products(home, tmp_path, text, {}, x=(4, 64))
    assert unnamed.weight == ""


def test_fp4_on_both_sides_is_seen_through_its_two_scales(home: Home, tmp_path: Path) -> None:
    (one,) = find_products(parse_network(home, nvfp4(tmp_path)).facts_at({"x": (4, WIDTH)}))
    assert one.precision == Precision(weights="fp4", activations="fp4")
    assert one.multiply_adds == 4 * WIDTH * OUT


def plugin(*inputs: Tensor, out: tuple[int, ...]) -> Facts:
    result = Tensor(name="y", dtype="fp16", shape=out)
    layer = Layer(name="up", node="up", kind="PLUGIN_V3", inputs=inputs, outputs=(result,))
    return Facts(inputs=inputs, outputs=(result,), layers=(layer,))


@pytest.mark.parametrize(
    ("dtype", "codes", "scales", "expected"),
    [
        ("int8", (4, 64, 32), (4, 1, 32), "int8"),
        ("int8", (4, 64, 16), (4, 2, 32), "int4"),
        ("fp8", (4, 64, 32), (4, 1, 32), "fp8"),
    ],
)
def test_a_plugin_with_two_weights_is_two_products(
    dtype: str, codes: tuple[int, ...], scales: tuple[int, ...], expected: str
) -> None:
    tensors = [Tensor(name="hidden", dtype="fp16", shape=(5, 64))]
    for name in ("gate", "up"):
        tensors.append(Tensor(name=name, dtype=dtype, shape=codes))
        tensors.append(Tensor(name=f"{name}.scale", dtype="fp16", shape=scales))
    facts = plugin(*tensors, out=(5, 3, 32))
    found = find_products(facts, [tensor.name for tensor in tensors[1:]])
    assert [one.weight for one in found] == ["gate", "up"]
    assert {one.precision for one in found} == {Precision(weights=expected, activations="fp16")}
    assert {one.multiply_adds for one in found} == {5 * 3 * 64 * 32}


def test_a_plugin_meets_what_rounded_numbers_mean_and_a_product_their_codes() -> None:
    codes = Tensor(name="q", dtype="int8", shape=(5, 64))
    rounded = Tensor(name="d", dtype="fp16", shape=(5, 64))
    weights = Tensor(name="w", dtype="int8", shape=(64, 32))
    out = Tensor(name="y", dtype="fp16", shape=(5, 32))
    unround = Layer(name="u", node="u", kind="DEQUANTIZE", inputs=(codes,), outputs=(rounded,))
    found = []
    for kind in ("MATRIX_MULTIPLY", "PLUGIN_V3"):
        layer = Layer(name="p", node="p", kind=kind, inputs=(rounded, weights), outputs=(out,))
        facts = Facts(inputs=(codes, weights), outputs=(out,), layers=(unround, layer))
        found += [str(one.precision) for one in find_products(facts, ["w"])]
    assert found == ["int8 x int8", "int8 x fp16"]


def test_a_plugin_without_weights_is_no_work() -> None:
    chosen = Tensor(name="experts", dtype="int64", shape=(5, 3))
    (one,) = find_products(plugin(chosen, out=(15,)))
    assert (one.weight, one.multiply_adds) == ("", 0)


def test_a_moe_layer_works_for_the_chosen_experts_alone() -> None:
    shapes = {"x": (1, 5, 64), "chosen": (1, 5, 3), "scores": (1, 5, 3)}
    tensors = [Tensor(name=name, dtype="fp16", shape=shape) for name, shape in shapes.items()]
    weights = {"gate": (8, 64, 32), "up": (8, 64, 32), "down": (8, 32, 64)}
    tensors += [Tensor(name=name, dtype="fp8", shape=shape) for name, shape in weights.items()]
    out = Tensor(name="y", dtype="fp16", shape=(1, 5, 64))
    layer = Layer(name="moe", node="moe", kind="MOE", inputs=tuple(tensors), outputs=(out,))
    facts = Facts(inputs=tuple(tensors), outputs=(out,), layers=(layer,))
    found = find_products(facts, list(weights))
    assert [one.weight for one in found] == ["gate", "up", "down"]
    assert {one.multiply_adds for one in found} == {5 * 3 * 64 * 32}
