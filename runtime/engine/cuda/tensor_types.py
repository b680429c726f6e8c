"""Types of tensors as ONNX Runtime calls them, by what binding their memory takes."""

from typing import NamedTuple


class Type(NamedTuple):
    """A type of tensors."""

    number: int
    """As ONNX numbers it."""
    stored: str
    """As `to_stored` calls it."""
    size: int
    """In bytes."""


TYPES = {
    "tensor(float)": Type(1, "FLOAT", 4),
    "tensor(float16)": Type(10, "HALF", 2),
    "tensor(bfloat16)": Type(16, "BF16", 2),
    "tensor(int32)": Type(6, "INT32", 4),
    "tensor(int64)": Type(7, "INT64", 8),
}
