"""Values between the host, which computes in fp32, and the types of a plan's inputs and outputs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

STORED = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": np.uint16,
    "INT32": np.int32,
    "INT64": np.int64,
}
"""How numpy holds the bytes of TensorRT's types."""

_BF16_NAN = 0x7FC0


def to_stored(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Turn values into the bytes of a type; bf16 is rounded to nearest, ties to even, NaN kept."""
    if dtype != "BF16":
        return np.ascontiguousarray(values, dtype=STORED[dtype])
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, _BF16_NAN, rounded).astype(np.uint16)


def from_stored(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Widen floating-point values of a type to fp32."""
    if dtype != "BF16":
        return stored.astype(np.float32)
    return (stored.astype(np.uint32) << 16).view(np.float32)
