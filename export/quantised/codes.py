"""The number formats: values to codes, codes to values, codes to bytes.

A value is divided by its scale before it becomes a code. All rounding is to nearest, ties to even;
what lies outside a format's range becomes its largest value.

Sources: ONNX's type definitions (int4: two in a byte, the first in the low half; float8e4m3fn;
float4e2m1); OCP 8-bit floating point; OCP microscaling formats 1.0, section 5.3.3 (E2M1).
"""

from itertools import pairwise

import onnx_ir as ir
import torch
from torch import Tensor

LARGEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0, "nvfp4": 6.0}
"""The largest value of each format; the smallest is its negative (-128 and -8 are not used)."""

ONNX_TYPES = {
    "int8": ir.DataType.INT8,
    "int4": ir.DataType.INT4,
    "fp8": ir.DataType.FLOAT8E4M3FN,
    "nvfp4": ir.DataType.FLOAT4E2M1,
}

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of float4e2m1 by code; the fourth bit is the sign."""
_E2M1_BORDERS = tuple((low + high) / 2 for low, high in pairwise(_E2M1))
_SIGN = 8


def round_to(values: Tensor, codes: str) -> Tensor:
    """Round fp32 values, already divided by their scale, to what a format can hold; fp32."""
    largest = LARGEST[codes]
    bounded = values.clamp(-largest, largest)
    if codes == "fp8":
        return bounded.to(torch.float8_e4m3fn).float()
    return _decode_e2m1(_encode_e2m1(bounded)) if codes == "nvfp4" else bounded.round()


def encode(values: Tensor, codes: str) -> Tensor:
    """Turn fp32 values, already divided by their scale, into codes.

    Returns:
        The same shape: int8 for `int8` and `int4`, float8_e4m3fn for `fp8`, uint8 (0 to 15) for
        `nvfp4`.
    """
    bounded = values.clamp(-LARGEST[codes], LARGEST[codes])
    if codes == "fp8":
        return bounded.to(torch.float8_e4m3fn)
    return _encode_e2m1(bounded) if codes == "nvfp4" else bounded.round().to(torch.int8)


def decode(encoded: Tensor, codes: str) -> Tensor:
    """Turn codes back into fp32 values, not yet multiplied by their scale."""
    return _decode_e2m1(encoded) if codes == "nvfp4" else encoded.float()


def to_bytes(encoded: Tensor, codes: str) -> memoryview:
    """Lay codes out as ONNX stores them: 4-bit codes two in a byte, the first in the low half."""
    flat = encoded.contiguous().view(torch.uint8).flatten()
    if codes in ("int4", "nvfp4"):
        if len(flat) % 2:
            flat = torch.cat([flat, flat.new_zeros(1)])
        flat = (flat[::2] & 15) | (flat[1::2] << 4)
    return flat.numpy().data


def _encode_e2m1(values: Tensor) -> Tensor:
    # A border belongs to the even code beside it: (0.25 to 0, 0.75 to 2, 1.25 to 2, 1.75 to 4 ...).
    borders = torch.tensor(_E2M1_BORDERS)
    sizes = values.abs().contiguous()
    below = torch.bucketize(sizes, borders, out_int32=True)  # a border counts as below it
    above = torch.bucketize(sizes, borders, right=True, out_int32=True)
    code = torch.where(below % 2 == 0, below, above).to(torch.uint8)
    return code | (torch.signbit(values).to(torch.uint8) * _SIGN)


def _decode_e2m1(encoded: Tensor) -> Tensor:
    table = torch.tensor([*_E2M1, *(-size for size in _E2M1)])
    return table[encoded.to(torch.int32)]
