"""Small graphs with a recipe put into them, run by stock ONNX Runtime, against numpy.

Codes and scales here are random, made with ml_dtypes; what a graph means is written out in numpy.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from calibration.scales.rounding import round_to_fp4
from engines.cpu.passes import passes
from engines.cpu.passes.widen_fp4 import WidenFP4
from engines.lowering import Pass, lower
from export.graph.functions import OPSET, neutral_functions
from export.graph.quantise import (
    FP4_QUANTIZE,
    QuantisedInput,
    input_scale_name,
    quantise_graph,
    scale_name,
    whole_name,
)
from runtime.names import DOMAIN
from tests.stock_runtime import run

Array = NDArray[Any]

TOLERANCE = 1e-6
"""Of the largest output: sums of 64 products in fp32, in another order."""
CODES: dict[str, Any] = {
    "int8": np.int8,
    "int4": ml_dtypes.int4,
    "fp8": ml_dtypes.float8_e4m3fn,
    "nvfp4": ml_dtypes.float4_e2m1fn,
}
ONE_MATRIX = "g (float[N, 64] x, float[64, 24] w) => (float[N, 24] y) { y = MatMul (x, w) }"
TWO_MATRICES = """g (float[N, 64] x, float[64, 24] w, float[64, 24] v) => (float[N, 24] y) {
    first = MatMul (x, w)
    second = MatMul (x, v)
    both = Add (first, second)
    mean = ReduceMean <keepdims: int = 0> (x)
    y = Add (both, mean)
}"""
EXPERTS = f"""g (float[N, 64] x, int64[N, 2] chosen, float[3, 64, 24] w, float[3, 64, 24] v)
    => (float[N, 2, 24] y) {{
    y = {DOMAIN}.ExpertsUp (x, chosen, w, v)
}}"""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Random codes of one parameter (..., K, N), and what they mean in fp32."""

    codes: Array
    step: Array
    whole: Array | None
    meaning: Array


def make_stored(form: str, group: int | None, shape: tuple[int, ...], seed: int) -> Stored:
    random = np.random.default_rng(seed)
    *stack, inputs, outputs = shape
    if form == "nvfp4":
        codes = random.integers(0, 16, shape, dtype=np.uint8).view(CODES[form])
    else:
        largest = {"int8": 127, "int4": 7, "fp8": 448}[form]
        codes = random.integers(-largest, largest, shape, endpoint=True).astype(CODES[form])
    step = random.uniform(0.001, 0.01, (*stack, inputs // (group or inputs), outputs))
    whole = np.float32(0.37) if form == "nvfp4" else np.float32(1)
    step = step.astype(ml_dtypes.float8_e4m3fn if form == "nvfp4" else np.float32)
    factors = np.repeat(step.astype(np.float32) * whole, group or inputs, axis=-2)
    if group is None and not stack:
        step = step[0]  # one for each output, without an axis for the inputs
    return Stored(
        codes=codes,
        step=step,
        whole=np.asarray(whole) if form == "nvfp4" else None,
        meaning=codes.astype(np.float32) * factors,
    )


def build(text: str) -> ir.Model:
    """A traced graph: inputs named w and v become initialisers without values."""
    header = f'<ir_version: 11, opset_import: ["": {OPSET}, "{DOMAIN}": 1]>\n'
    model = ir.serde.deserialize_model(onnx.parser.parse_model(header + text))
    for value in [value for value in model.graph.inputs if value.name in ("w", "v")]:
        model.graph.inputs.remove(value)
        model.graph.initializers.add(value)
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for name, function in neutral_functions().items():
        if name in used:
            model.functions[function.identifier()] = function
    return model


def put_in(
    model: ir.Model,
    stored: dict[str, Stored],
    group: int | None,
    activations: str | None = None,
    input_scale: float | None = None,
) -> None:
    """Quantise all parameters in one format, and fill in their values."""
    first = next(iter(stored))
    inputs = [
        QuantisedInput(
            name=name,
            reads_with=first,
            codes=ir.DataType.from_numpy(one.codes.dtype),
            group=group,
            scale_shape=one.step.shape,
            is_two_level=one.whole is not None,
            activations=activations,
            is_dynamic=activations in ("int8", "fp8") and input_scale is None,
        )
        for name, one in stored.items()
    ]
    quantise_graph(model, inputs)
    values: dict[str, Array] = {input_scale_name(first): np.asarray(input_scale, dtype=np.float32)}
    for name, one in stored.items():
        values |= {name: one.codes, scale_name(name): one.step}
        if one.whole is not None:
            values[whole_name(name)] = one.whole
    for name, value in model.graph.initializers.items():
        value.const_value = ir.tensor(values[str(name)], name=name)


def lowered(model: ir.Model, steps: Iterable[Pass]) -> ir.Model:
    """Lower a copy, and fill in the weights that the passes made."""
    result = lower(model.clone(), list(steps))
    for made in result.new_weights:
        proto = onnx.TensorProto(
            name=made.name,
            data_type=made.dtype.value,
            dims=made.shape,
            raw_data=b"".join(bytes(block) for block in made.blocks()),
        )
        value = result.model.graph.initializers[made.name]
        value.const_value = ir.serde.deserialize_tensor(proto)
    return result.model


def check(model: ir.Model) -> None:
    """Let onnx check the model with its shapes."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def make_inputs(rows: int = 5) -> Array:
    """(N, 64) fp32 with one large and one all-zero row; the second block of 16 is tiny."""
    x = np.random.default_rng(5).standard_normal((rows, 64))
    x[1] = 0.0
    x[2] *= 30.0
    x[:, 16:32] *= 1e-4
    return x.astype(np.float32)


def assert_close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def experts_up(x: Array, chosen: Array, gate: Array, up: Array) -> Array:
    """(N, C) meets (E, C, I): (N, K, I)."""
    rows = []
    for row, experts in zip(x.astype(np.float64), chosen, strict=True):
        gated = [row @ gate[expert] for expert in experts]
        lifted = [row @ up[expert] for expert in experts]
        pairs = zip(gated, lifted, strict=True)
        rows.append([a * (1 + np.tanh(a / 2)) / 2 * b for a, b in pairs])
    return np.asarray(rows)


def rounded_int8(x: Array, scale: np.float32) -> Array:
    return np.clip(np.rint(x / scale), -128, 127).astype(np.float32) * scale


def rounded_fp8(x: Array, scale: np.float32) -> Array:
    bounded = np.clip(x / scale, -448, 448)
    return bounded.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


def rounded_fp4(x: Array, whole: np.float32) -> Array:
    """Blocks of 16: an E4M3 step that holds the largest, E2M1 codes."""
    blocks = x.reshape(*x.shape[:-1], -1, 16)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    wanted = np.minimum(largest / np.float32(6) / whole, np.float32(448))
    factors = wanted.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * whole
    quotients = np.divide(blocks, factors, out=np.zeros_like(blocks), where=factors > 0)
    left = quotients.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * factors
    return np.asarray(left.reshape(x.shape))


WEIGHTS = [("int8", None), ("int8", 32), ("int4", 32), ("int4", 64), ("fp8", None), ("fp8", 16)]


@pytest.mark.parametrize(("form", "group"), WEIGHTS)
def test_a_matrix_is_what_its_codes_mean(form: str, group: int | None) -> None:
    stored = make_stored(form, group, (64, 24), seed=1)
    model = build(ONE_MATRIX)
    put_in(model, {"w": stored}, group)
    check(model)
    x = make_inputs()
    assert_close(run(model, {"x": x}), x @ stored.meaning)


@pytest.mark.parametrize(("form", "group"), WEIGHTS)
def test_stacked_experts_are_what_their_codes_mean(form: str, group: int | None) -> None:
    gate, up = (make_stored(form, group, (3, 64, 24), seed=seed) for seed in (1, 2))
    model = build(EXPERTS)
    put_in(model, {"w": gate, "v": up}, group)
    check(model)
    x, chosen = make_inputs(), np.array([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]])
    found = run(model, {"x": x, "chosen": chosen})
    assert_close(found, experts_up(x, chosen, gate.meaning, up.meaning))


@pytest.mark.parametrize("activations", [None, "nvfp4"])
def test_nvfp4_means_the_same_after_the_lowering_for_the_cpu(
    activations: str | None,
) -> None:
    stored = make_stored("nvfp4", 16, (64, 24), seed=1)
    model = build(ONE_MATRIX)
    put_in(model, {"w": stored}, 16, activations, input_scale=0.004)
    check(model)
    wide = lowered(model, [WidenFP4()])
    check(wide)
    x = make_inputs()
    rounded = x if activations is None else rounded_fp4(x, np.float32(0.004))
    assert_close(run(wide, {"x": x}), rounded @ stored.meaning)
    types = {value.dtype for value in wide.graph.initializers.values()}
    assert ir.DataType.FLOAT4E2M1 not in types


def test_nvfp4_experts_mean_the_same_after_the_lowering_for_the_cpu() -> None:
    gate, up = (make_stored("nvfp4", 16, (3, 64, 24), seed=seed) for seed in (1, 2))
    model = build(EXPERTS)
    put_in(model, {"w": gate, "v": up}, 16, "nvfp4", input_scale=0.004)
    check(model)
    x, chosen = make_inputs(), np.array([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]])
    found = run(lowered(model, [WidenFP4()]), {"x": x, "chosen": chosen})
    rounded = rounded_fp4(x, np.float32(0.004))
    assert_close(found, experts_up(rounded, chosen, gate.meaning, up.meaning))


@pytest.mark.parametrize("scale", [0.02, None], ids=["static", "dynamic"])
@pytest.mark.parametrize("activations", ["int8", "fp8"])
def test_what_meets_a_matrix_is_rounded(activations: str, scale: float | None) -> None:
    """The static scale is too small for the largest values, which saturate."""
    form = "int8" if activations == "int8" else "fp8"
    stored = make_stored(form, None, (64, 24), seed=1)
    model = build(ONE_MATRIX)
    put_in(model, {"w": stored}, None, activations, scale)
    check(model)
    x = make_inputs()
    largest = np.float32({"int8": 127, "fp8": 448}[activations])
    step = np.float32(np.abs(x).max() / largest if scale is None else scale)
    rounding = rounded_int8 if activations == "int8" else rounded_fp8
    assert (np.abs(x) > 1.1 * largest * step).any() == (scale is not None)
    assert_close(run(model, {"x": x}), rounding(x, step) @ stored.meaning)


@pytest.mark.parametrize("activations", ["int8", "fp8"])
def test_a_dynamic_scale_is_never_below_the_smallest_number_of_fp16(activations: str) -> None:
    stored = make_stored(activations, None, (64, 24), seed=1)
    model = build(ONE_MATRIX)
    put_in(model, {"w": stored}, None, activations)
    assert (run(model, {"x": np.zeros((2, 64), dtype=np.float32)}) == 0).all()
    x = make_inputs() * np.float32(5e-8)
    assert 0 < np.abs(x).max() / 127 < 2.0**-24
    rounding = rounded_int8 if activations == "int8" else rounded_fp8
    assert_close(run(model, {"x": x}), rounding(x, np.float32(2.0**-24)) @ stored.meaning)


def test_a_dynamic_scale_is_the_quotient_that_calibration_uses() -> None:
    """For these a product with 1 / 127 has another last bit, which moves most ties of a half."""
    one = np.eye(64, 24, dtype=np.int8)
    stored = Stored(codes=one, step=np.ones(24, np.float32), whole=None, meaning=one)
    model = build(ONE_MATRIX)
    put_in(model, {"w": stored}, None, "int8")
    for largest in np.array([1.8894879, 1.9340435, 1.4045519], dtype=np.float32):
        step = np.float32(largest / np.float32(127))
        assert step != np.float32(largest * np.float32(1 / 127))
        x = np.zeros((1, 64), dtype=np.float32)
        x[0, :24] = step * (np.arange(24, dtype=np.float32) + np.float32(0.5))
        x[0, 24] = largest
        np.testing.assert_array_equal(run(model, {"x": x}), rounded_int8(x, step)[:, :24])


@pytest.mark.parametrize("form", ["int8", "fp8", "nvfp4"])
def test_two_matrices_share_one_rounding_and_others_read_what_was_there(form: str) -> None:
    group = 16 if form == "nvfp4" else None
    stored = {name: make_stored(form, group, (64, 24), seed) for seed, name in enumerate("wv")}
    model = build(TWO_MATRICES)
    put_in(model, stored, group, form, input_scale=0.01)
    check(model)
    op_type = FP4_QUANTIZE if form == "nvfp4" else "QuantizeLinear"
    assert [node.op_type for node in model.graph].count(op_type) == 1
    assert input_scale_name("v") not in model.graph.initializers
    x = make_inputs()
    rounding = {"int8": rounded_int8, "fp8": rounded_fp8, "nvfp4": rounded_fp4}[form]
    left = rounding(x, np.float32(0.01))
    expected = left @ (stored["w"].meaning + stored["v"].meaning) + x.mean()
    assert_close(run(lowered(model, [WidenFP4()]), {"x": x}), expected)


@pytest.mark.parametrize("form", ["int8", "nvfp4"])
def test_one_op_with_two_matrices_rounds_its_input_once(form: str) -> None:
    group = 16 if form == "nvfp4" else None
    stored = {name: make_stored(form, group, (3, 64, 24), seed) for seed, name in enumerate("wv")}
    model = build(EXPERTS)
    put_in(model, stored, group, form, input_scale=0.01)
    op_type = FP4_QUANTIZE if form == "nvfp4" else "QuantizeLinear"
    assert [node.op_type for node in model.graph].count(op_type) == 1


def test_the_whole_lowering_for_the_cpu_keeps_the_meaning_of_narrow_scales() -> None:
    """Scales in bf16 are widened, which is exact."""
    stored = make_stored("int8", None, (64, 24), seed=1)
    narrow = stored.step.astype(ml_dtypes.bfloat16)
    model = build(ONE_MATRIX.replace("float", "bfloat16"))
    put_in(
        model,
        {"w": Stored(codes=stored.codes, step=narrow, whole=None, meaning=stored.meaning)},
        None,
        "int8",
        input_scale=0.03125,
    )
    model.graph.initializers["w.input_scale"].const_value = ir.tensor(
        np.asarray(0.03125, dtype=ml_dtypes.bfloat16)
    )
    check(model)
    x = make_inputs()
    meaning = stored.codes.astype(np.float32) * narrow.astype(np.float32)
    found = run(lowered(model, passes(may_round_activations=False)), {"x": x})
    assert found.dtype == np.float32
    assert_close(found, rounded_int8(x, np.float32(0.03125)) @ meaning)


def rounding_model() -> onnx.ModelProto:
    """TensorRT's op alone, with our body; y = codes, step = scales of the blocks."""
    model = build(ONE_MATRIX)
    put_in(model, {"w": make_stored("nvfp4", 16, (64, 24), 1)}, 16, "nvfp4", input_scale=0.004)
    node = next(node for node in model.graph if node.op_type == FP4_QUANTIZE)
    whole = onnx.helper.make_tensor_value_info("whole", onnx.TensorProto.FLOAT, [])
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 64])
    codes = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT4E2M1, ["N", 64])
    step = onnx.helper.make_tensor_value_info("step", onnx.TensorProto.FLOAT8E4M3FN, ["N", 4])
    proto = ir.to_proto(node)
    proto.input[:], proto.output[:] = ["x", "whole"], ["y", "step"]
    return onnx.helper.make_model(
        onnx.helper.make_graph([proto], "g", [x, whole], [codes, step]),
        functions=[ir.to_proto(one) for one in model.functions.values()],
        opset_imports=[
            onnx.helper.make_opsetid("", OPSET),
            onnx.helper.make_opsetid(node.domain, 1),
        ],
        ir_version=11,
    )


@pytest.mark.parametrize("whole", [0.004, 3e-5, 1.0])
def test_the_body_of_tensorrts_op_is_what_calibration_rounds_to(whole: float) -> None:
    """onnx's reference evaluator on the body; 1.0 is so large that small blocks become zero."""
    proto = rounding_model()
    onnx.checker.check_model(proto, full_check=True)
    x, factor = make_inputs(), np.float32(whole)
    codes, step = ReferenceEvaluator(proto).run(None, {"x": x, "whole": np.asarray(factor)})
    factors = np.repeat(np.asarray(step).astype(np.float32) * factor, 16, axis=-1)
    found = np.asarray(codes).astype(np.float32) * factors
    ours = round_to_fp4(torch.from_numpy(x), torch.tensor(factor)).numpy()
    np.testing.assert_array_equal(found, ours)
    np.testing.assert_array_equal(ours, rounded_fp4(x, factor))
    assert (ours != 0).mean() > 0.3
