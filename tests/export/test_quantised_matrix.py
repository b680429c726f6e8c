"""Scales and codes of matrices against the definition, written out in loops over numpy numbers.

ONNX Runtime's own packers are a second oracle. Their symmetric scales divide the largest number of
a group, with its sign, by the most negative code (-8 or -128): scales may be negative, which
TensorRT refuses. Ours divide its size by 7 or 127. So the codes differ; what is compared is the
layout of the bytes, the largest number behind each scale, and the error: steps of 1/7 instead of
1/8 cost up to (8 / 7)^2 = 1.31 times the mean square.
"""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.capi import _pybind_state as packers

from export.quantised.codes import LARGEST, to_bytes
from export.quantised.matrix import (
    Scales,
    dequantise,
    group_maxima,
    quantise,
    rounded,
    scales_for,
    two_level_scales,
)
from export.recipe.recipe import WeightFormat

Array = NDArray[Any]

TYPES: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
}
FORMS = [
    WeightFormat(codes="int8"),
    WeightFormat(codes="int8", group=32),
    WeightFormat(codes="int4", group=32),
    WeightFormat(codes="int4", group=64),
    WeightFormat(codes="int4", group=128),
    WeightFormat(codes="fp8"),
    WeightFormat(codes="fp8", group=16),
    WeightFormat(codes="nvfp4", group=16),
]
SMALLEST = np.float32(2.0**-24)
E2M1 = ml_dtypes.float4_e2m1fn
E4M3 = ml_dtypes.float8_e4m3fn


def make_matrix(kind: str, *shape: int) -> Array:
    """Seeded weights; the last axis is the outputs."""
    random = np.random.default_rng(11)
    weight = random.standard_normal(shape)
    if kind == "heavy":
        weight = weight**3
    elif kind == "outlier":
        weight[..., 5, 1] = 3e4
        weight[..., 6, 2] = -7e3
    elif kind == "zeros":
        weight[..., 2] = 0.0
        weight[..., :16, 0] = 0.0
    elif kind == "tiny":
        weight *= 1e-5
    return weight.astype(np.float32)


def on_grid(value: np.float32, codes: str) -> np.float32:
    """Nearest number of a format, ties to even."""
    largest = np.float32(LARGEST[codes])
    bounded = min(max(value, -largest), largest)
    if codes in ("int8", "int4"):
        return np.float32(np.rint(bounded))
    return np.float32(np.float32(bounded).astype(E2M1 if codes == "nvfp4" else E4M3))


def factors_of(weight: Array, form: WeightFormat, base: torch.dtype) -> tuple[Array, Array]:
    """Scales of one matrix (K, N) as stored, and as they multiply codes, both fp32."""
    inputs, outputs = weight.shape
    group = form.group or inputs
    stored = np.zeros((inputs // group, outputs), dtype=np.float32)
    whole = np.float32(np.abs(weight).max() / np.float32(6 * 448))
    for part in range(inputs // group):
        for output in range(outputs):
            most = np.abs(weight[part * group : (part + 1) * group, output]).max()
            scale = np.float32(most / np.float32(LARGEST[form.codes]))
            if form.codes == "nvfp4":
                step = on_grid(np.float32(scale / whole), "fp8")
                stored[part, output] = max(step, 2.0**-9) if most > 0 else 0.0
            else:
                stored[part, output] = max(scale, SMALLEST).astype(TYPES[base])
    return stored, stored * (whole if form.codes == "nvfp4" else np.float32(1))


def meaning_of(weight: Array, factors: Array, form: WeightFormat) -> Array:
    """What is left of each weight of one matrix."""
    inputs, outputs = weight.shape
    group = form.group or inputs
    left = np.zeros_like(weight)
    for row in range(inputs):
        for output in range(outputs):
            factor = factors[row // group, output]
            if factor > 0:
                left[row, output] = on_grid(weight[row, output] / factor, form.codes) * factor
    return left


@pytest.mark.parametrize("base", TYPES, ids=lambda base: str(base).removeprefix("torch."))
@pytest.mark.parametrize("kind", ["normal", "heavy", "outlier", "zeros"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_scales_and_meaning_follow_the_definition(
    form: WeightFormat, kind: str, base: torch.dtype
) -> None:
    weight = make_matrix(kind, 128, 5)
    scales = scales_for(torch.from_numpy(weight), form, base)
    stored, factors = factors_of(weight, form, base)
    assert scales.step.dtype == (torch.float8_e4m3fn if form.codes == "nvfp4" else base)
    np.testing.assert_array_equal(scales.step.float().numpy(), stored)
    np.testing.assert_array_equal(scales.values().numpy(), factors)
    expected = meaning_of(weight, factors, form)
    encoded = quantise(torch.from_numpy(weight), scales, form)
    assert encoded.shape == weight.shape
    np.testing.assert_array_equal(dequantise(encoded, scales, form).numpy(), expected)
    np.testing.assert_array_equal(rounded(torch.from_numpy(weight), scales, form).numpy(), expected)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_stack_is_its_matrices(form: WeightFormat) -> None:
    """In NVFP4 they share one number, that of the largest weight of all."""
    stack = torch.from_numpy(make_matrix("heavy", 3, 128, 7))
    scales = scales_for(stack, form, torch.float16)
    groups = 1 if form.group is None else 128 // form.group
    assert scales.step.shape == (3, groups, 7)
    encoded = quantise(stack, scales, form)
    for index, matrix in enumerate(stack):
        if form.codes == "nvfp4":
            maxima = group_maxima(matrix, form)
            shared = torch.cat([maxima, stack.abs().max().expand(1, 7)])
            one = two_level_scales(shared)
            one = Scales(step=one.step[:-1], whole=one.whole)
        else:
            one = scales_for(matrix, form, torch.float16)
        assert torch.equal(scales.step[index].float(), one.step.float())
        assert torch.equal(encoded[index].float(), quantise(matrix, one, form).float())


def spacing_at(quotients: Array, codes: str) -> Array:
    """Distance between the two numbers of a format around each quotient."""
    if codes in ("int8", "int4"):
        return np.ones_like(quotients)
    smallest, bits = {"nvfp4": (1.0, 1), "fp8": (2.0**-6, 3)}[codes]
    return np.asarray(np.exp2(np.floor(np.log2(np.maximum(np.abs(quotients), smallest))) - bits))


@pytest.mark.parametrize("base", TYPES, ids=lambda base: str(base).removeprefix("torch."))
@pytest.mark.parametrize("kind", ["normal", "heavy", "outlier", "zeros", "tiny"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_no_error_inside_the_range_exceeds_half_a_step(
    form: WeightFormat, kind: str, base: torch.dtype
) -> None:
    weight = torch.from_numpy(make_matrix(kind, 256, 9))
    scales = scales_for(weight, form, base)
    factors = scales.values().repeat_interleave(form.group or 256, dim=0).double().numpy()
    left = rounded(weight, scales, form).double().numpy()
    exact = weight.double().numpy()
    quotients = np.divide(exact, factors, out=np.zeros_like(exact), where=factors > 0)
    inside = np.abs(quotients) <= LARGEST[form.codes]
    half = spacing_at(quotients, form.codes) * factors / 2
    one_ulp = np.abs(exact) * 2.0**-22  # of the fp32 quotient and product
    assert (np.abs(left - exact)[inside] <= (half + one_ulp)[inside]).all()
    outside = ~inside  # a scale was rounded down: what is cut off ends at the largest code
    np.testing.assert_allclose(
        np.abs(left[outside]), LARGEST[form.codes] * factors[outside], rtol=1e-6
    )


@pytest.mark.parametrize("base", TYPES, ids=lambda base: str(base).removeprefix("torch."))
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rounded_scales_cut_off_less_than_half_a_step(
    form: WeightFormat, base: torch.dtype
) -> None:
    """A scale in bf16 is off by 2^-8 at most, in E4M3 by 2^-4: 127.496 and 6.375 at the top."""
    weight = torch.from_numpy(make_matrix("normal", 256, 9))
    scales = scales_for(weight, form, base)
    most = group_maxima(weight, form).reshape(scales.step.shape)
    excess = most / scales.values() - LARGEST[form.codes]
    relative = {torch.float32: 2.0**-23, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[base]
    bound = LARGEST[form.codes] * (2.0**-4 if form.codes == "nvfp4" else relative)
    assert float(excess.max()) <= bound * (1 + 1e-6)
    top_spacing = {"int8": 1.0, "int4": 1.0, "fp8": 32.0, "nvfp4": 2.0}[form.codes]
    assert bound < top_spacing / 2


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_columns_of_zeros_stay_zeros(form: WeightFormat) -> None:
    for weight in (torch.zeros(128, 3), torch.from_numpy(make_matrix("zeros", 128, 3))):
        scales = scales_for(weight, form, torch.bfloat16)
        left = rounded(weight, scales, form)
        assert bool(torch.isfinite(left).all())
        assert (left[:, 2] == 0).all()
        assert (quantise(weight, scales, form).float()[:, 2] == 0).all()
        assert form.codes == "nvfp4" or (scales.step > 0).all()


def test_a_group_far_below_the_largest_weight_keeps_the_smallest_step() -> None:
    """In NVFP4 a step of 2^-10 or less would become zero and take its group along."""
    form = WeightFormat(codes="nvfp4", group=16)
    weight = torch.zeros(48, 1)
    weight[0], weight[16], weight[32] = 2688.0, 6 * 2.0**-11, 0.0
    scales = scales_for(weight, form, torch.float32)
    assert scales.step.float()[:, 0].tolist() == [448.0, 2.0**-9, 0.0]
    assert rounded(weight, scales, form)[:, 0][[0, 16, 32]].tolist() == [
        2688.0,
        1.5 * 2.0**-9,
        0.0,
    ]


def int4_numbers(packed: Array) -> Array:
    """Signed numbers of two codes in a byte, the first in the low half."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return np.where(pairs > 7, pairs.astype(np.int8) - 16, pairs).astype(np.int8)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_bytes_lie_as_those_of_onnx_runtime(group: int) -> None:
    """Its packer for DequantizeLinear writes codes of its own scales; packed by us: equal bytes."""
    weight = make_matrix("normal", 256, 6)
    packed = np.zeros(256 * 6 // 2, dtype=np.uint8)
    steps = np.zeros((256 // group, 6), dtype=np.float32)
    zeros = np.zeros(256 // group * 3, dtype=np.uint8)
    is_signed = packers.quantize_qdq_matmul_4bits(packed, weight, steps, zeros, group, 6, 256, True)
    assert is_signed
    codes = torch.from_numpy(int4_numbers(packed).reshape(256, 6))
    assert bytes(to_bytes(codes, "int4")) == packed.tobytes()
    form = WeightFormat(codes="int4", group=group)
    theirs = dequantise(codes, Scales(step=torch.from_numpy(steps)), form).numpy()
    assert np.abs(theirs - weight).max() <= np.abs(steps).max()  # so the layout is understood
    ours = scales_for(torch.from_numpy(weight), form, torch.float32).step.numpy()
    np.testing.assert_allclose(np.abs(steps) * 8, ours * 7, rtol=1e-6)


def error_ratio(weight: Array, theirs: Array, form: WeightFormat) -> float:
    """Our mean square error over that of another meaning (N, groups, group) of a weight (K, N)."""
    others = theirs.reshape(weight.shape[1], -1).T
    scales = scales_for(torch.from_numpy(weight), form, torch.float32)
    ours = rounded(torch.from_numpy(weight), scales, form).numpy()
    return float(np.square(ours - weight).mean() / np.square(others - weight).mean())


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_loses_what_its_larger_steps_cost_beside_onnx_runtime(group: int, kind: str) -> None:
    """MatMulNBits' packer: codes (N, K / group, group / 2), unsigned, 8 is zero."""
    weight = make_matrix(kind, 256, 64)
    packed = np.zeros((64, 256 // group, group // 2), dtype=np.uint8)
    steps = np.zeros(64 * 256 // group, dtype=np.float32)
    zeros = np.zeros(64 * -(-256 // group // 2), dtype=np.uint8)
    packers.quantize_matmul_4bits(packed, weight, steps, zeros, group, 64, 256, True)
    unsigned = np.stack([packed & 15, packed >> 4], axis=-1).reshape(64, 256 // group, group)
    theirs = (unsigned.astype(np.float32) - 8) * steps.reshape(64, -1, 1)
    ratio = error_ratio(weight, theirs, WeightFormat(codes="int4", group=group))
    assert 1.1 < ratio < 1.05 * (8 / 7) ** 2


def test_int8_loses_what_its_larger_steps_cost_beside_onnx_runtime() -> None:
    weight = make_matrix("normal", 256, 64)
    packed = np.zeros((64, 8, 32), dtype=np.uint8)
    steps = np.zeros(64 * 8, dtype=np.float32)
    zeros = np.zeros(64 * 8, dtype=np.uint8)
    packers.quantize_matmul_8bits(packed, weight, steps, zeros, 32, 64, 256, True)
    theirs = (packed.astype(np.float32) - 128) * steps.reshape(64, 8, 1)
    ratio = error_ratio(weight, theirs, WeightFormat(codes="int8", group=32))
    assert 0.97 < ratio < 1.05 * (128 / 127) ** 2
