"""Codes against the definitions of their formats: formulas in plain Python, and ml_dtypes.

int4 and float4 have no type of torch; ml_dtypes and onnx know both, and share no code with ours.
"""

import math
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from export.quantised.codes import LARGEST, decode, encode, round_to, to_bytes

Array = NDArray[Any]

ONNX_TYPES = {
    "int8": onnx.TensorProto.INT8,
    "int4": onnx.TensorProto.INT4,
    "fp8": onnx.TensorProto.FLOAT8E4M3FN,
    "nvfp4": onnx.TensorProto.FLOAT4E2M1,
}
NUMPY_TYPES: dict[str, Any] = {
    "int8": np.int8,
    "int4": ml_dtypes.int4,
    "fp8": ml_dtypes.float8_e4m3fn,
    "nvfp4": ml_dtypes.float4_e2m1fn,
}
FORMATS = tuple(NUMPY_TYPES)


def float_value(code: int, exponent_bits: int, mantissa_bits: int) -> float:
    """Value of a floating-point code by the definition; no infinities and no NaN."""
    bias = (1 << (exponent_bits - 1)) - 1
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1)
    if exponent == 0:
        size = math.ldexp(mantissa, 1 - bias - mantissa_bits)
    else:
        size = math.ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)
    return -size if code >> (exponent_bits + mantissa_bits) else size


def magnitudes(form: str) -> list[float]:
    """All sizes that a format can hold, by code; the codes of negative numbers come on top."""
    if form == "int8":
        return [float(size) for size in range(128)]
    if form == "int4":
        return [float(size) for size in range(8)]
    if form == "nvfp4":
        return [float_value(code, 2, 1) for code in range(8)]
    return [float_value(code, 4, 3) for code in range(127)]  # 127 is NaN


def nearest(values: Array, form: str) -> Array:
    """Round by looking at every number of the format; of two equally near the even code wins."""
    sizes = np.array(magnitudes(form))
    distances = np.abs(np.abs(values)[:, None].astype(np.float64) - sizes)
    odd = np.arange(len(sizes)) % 2
    best = [min(zip(row, odd, range(len(sizes)), strict=True))[2] for row in distances]
    return np.asarray(np.copysign(sizes[best], values))


def as_tensor(values: Array | list[float]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def as_codes(encoded: torch.Tensor) -> Array:
    """Codes as unsigned bytes."""
    return np.asarray(encoded.view(torch.uint8).numpy())


def test_every_e2m1_code_means_what_the_format_defines() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    expected = [float_value(code, 2, 1) for code in range(16)]
    assert expected[:8] == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    found = decode(codes, "nvfp4").numpy()
    assert found.tobytes() == np.array(expected, dtype=np.float32).tobytes()  # with signed zero
    bits = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn)
    assert found.tobytes() == bits.astype(np.float32).tobytes()


def test_every_e4m3_code_means_what_the_format_defines() -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn)
    found = decode(codes, "fp8").numpy()
    assert np.flatnonzero(np.isnan(found)).tolist() == [127, 255]
    finite = np.array([code for code in range(256) if code % 128 != 127])
    expected = np.array([float_value(int(code), 4, 3) for code in finite], dtype=np.float32)
    assert expected.max() == 448.0
    assert found[finite].tobytes() == expected.tobytes()


@pytest.mark.parametrize("form", FORMATS)
def test_every_code_survives_its_value(form: str) -> None:
    sizes = magnitudes(form)
    assert max(sizes) == LARGEST[form]
    values = np.array([*sizes, *(-size for size in sizes)], dtype=np.float32)
    encoded = encode(as_tensor(values), form)
    assert decode(encoded, form).numpy().tolist() == values.tolist()
    if form in ("fp8", "nvfp4"):  # integers have one zero, these have two
        negative = 1 << (7 if form == "fp8" else 3)
        codes = list(range(len(sizes)))
        assert as_codes(encoded).tolist() == [*codes, *(code + negative for code in codes)]


@pytest.mark.parametrize("form", FORMATS)
def test_ties_go_to_the_even_code_at_every_border(form: str) -> None:
    sizes = np.array(magnitudes(form), dtype=np.float32)
    borders = (sizes[:-1] + sizes[1:]) / 2
    codes = np.arange(len(borders))
    even = np.where(codes % 2 == 0, sizes[:-1], sizes[1:])
    for sign in (1, -1):
        at = round_to(as_tensor(sign * borders), form).numpy()
        below = round_to(as_tensor(sign * np.nextafter(borders, np.float32(0))), form).numpy()
        above = round_to(as_tensor(sign * np.nextafter(borders, np.float32(1e9))), form).numpy()
        assert (sign * at).tolist() == even.tolist()
        assert (sign * below).tolist() == sizes[:-1].tolist()
        assert (sign * above).tolist() == sizes[1:].tolist()


@pytest.mark.parametrize("form", FORMATS)
def test_rounding_agrees_with_ml_dtypes_and_with_the_nearest_number(form: str) -> None:
    random = np.random.default_rng(7)
    wide = random.standard_normal(4000) * 2.0 ** random.integers(-14, 11, 4000)
    values = np.clip(wide, -LARGEST[form], LARGEST[form]).astype(np.float32)
    found = round_to(as_tensor(values), form).numpy()
    np.testing.assert_array_equal(found, nearest(values, form))
    cast = np.rint(values) if form.startswith("int") else values
    theirs = cast.astype(NUMPY_TYPES[form])
    np.testing.assert_array_equal(found, theirs.astype(np.float32))
    encoded = encode(as_tensor(values), form)
    np.testing.assert_array_equal(decode(encoded, form).numpy(), found)
    used_bits = 15 if form in ("int4", "nvfp4") else 255  # of a byte, in which both keep one code
    np.testing.assert_array_equal(as_codes(encoded) & used_bits, theirs.view(np.uint8) & used_bits)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_too_large_becomes_the_largest(form: str) -> None:
    largest = LARGEST[form]
    beyond = as_tensor([largest * 1.001, largest * 2, 3e38, float("inf")])
    for sign in (1.0, -1.0):
        assert round_to(sign * beyond, form).tolist() == [sign * largest] * 4
        assert decode(encode(sign * beyond, form), form).tolist() == [sign * largest] * 4


def test_zeros_keep_their_sign_where_the_format_has_two() -> None:
    zeros = as_tensor([0.0, -0.0, 1e-12, -1e-12])
    assert as_codes(encode(zeros, "nvfp4")).tolist() == [0, 8, 0, 8]
    assert as_codes(encode(zeros, "fp8")).tolist() == [0, 128, 0, 128]
    assert as_codes(encode(zeros, "int8")).tolist() == [0, 0, 0, 0]
    assert as_codes(encode(zeros, "int4")).tolist() == [0, 0, 0, 0]


def read_by_onnx(encoded: torch.Tensor, form: str) -> Array:
    """What onnx reads from the bytes that we write."""
    proto = onnx.TensorProto(
        data_type=ONNX_TYPES[form], dims=encoded.shape, raw_data=bytes(to_bytes(encoded, form))
    )
    return np.asarray(onnx.numpy_helper.to_array(proto)).astype(np.float32)


@pytest.mark.parametrize("shape", [(16,), (15,), (1,), (3, 5), (4, 3, 2)])
@pytest.mark.parametrize("form", FORMATS)
def test_onnx_reads_back_what_is_packed(form: str, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(3)
    wanted = random.uniform(-LARGEST[form], LARGEST[form], shape).astype(np.float32)
    encoded = encode(as_tensor(wanted), form)
    found = read_by_onnx(encoded, form)
    assert found.shape == shape
    np.testing.assert_array_equal(found, decode(encoded, form).numpy())


@pytest.mark.parametrize("form", FORMATS)
def test_packed_bytes_are_those_that_onnx_writes(form: str) -> None:
    values = np.array([*magnitudes(form), *(-size for size in magnitudes(form)[1:])])
    assert len(values) % 2 == 1
    theirs = onnx.numpy_helper.from_array(values.astype(np.float32).astype(NUMPY_TYPES[form]))
    ours = to_bytes(encode(as_tensor(values), form), form)
    assert theirs.data_type == ONNX_TYPES[form]
    assert bytes(ours) == theirs.raw_data


@pytest.mark.parametrize("form", ["int4", "nvfp4"])
def test_two_codes_lie_in_a_byte_the_first_in_the_low_half(form: str) -> None:
    encoded = encode(as_tensor([1.0, -2.0, 3.0]), form)
    expected = {"int4": [0xE1, 0x03], "nvfp4": [0xC2, 0x05]}
    assert list(to_bytes(encoded, form)) == expected[form]


def test_packing_follows_the_order_of_the_axes_and_not_of_the_memory() -> None:
    turned = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).T
    assert list(to_bytes(encode(turned, "int4"), "int4")) == [0x31, 0x25, 0x64]
