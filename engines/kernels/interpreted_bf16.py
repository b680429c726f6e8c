"""bf16 in Triton's interpreter, which keeps it as bits in whole numbers and then mistakes them.

Its matrix product multiplies the bits, int8 becomes the bits of another number, and fp32 is cut off
and not rounded. Here products are of the values, and conversions go through fp32.

Source: triton 3.6 and 3.9, `InterpreterBuilder` in `runtime/interpreter.py`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_MENDED = ("cast_impl", "create_fp_to_fp", "create_dot")


@contextmanager
def correct_bf16() -> Iterator[None]:
    """Mend the interpreter for a while."""
    owner: Any = InterpreterBuilder
    originals = {name: getattr(owner, name) for name in _MENDED}
    owner.cast_impl = _converting(originals["cast_impl"])
    owner.create_fp_to_fp = _converting(originals["create_fp_to_fp"])
    owner.create_dot = _multiplying(originals["create_dot"])
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(owner, name, original)


def _converting(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def convert(
        builder: InterpreterBuilder, source: TensorHandle, target: tl.dtype, *rounding: object
    ) -> TensorHandle:
        wide = _widened(source)
        if target.scalar == tl.bfloat16:
            if wide.dtype.scalar != tl.float32:
                wide = original(builder, wide, tl.float32, *rounding)
            narrow = wide.data.astype(ml_dtypes.bfloat16)
            return TensorHandle(narrow.view(np.uint16), tl.bfloat16)
        if target.scalar == wide.dtype.scalar:
            return wide
        return original(builder, wide, target, *rounding)

    return convert


def _multiplying(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def multiply(
        builder: InterpreterBuilder, left: TensorHandle, right: TensorHandle, *others: TensorHandle
    ) -> TensorHandle:
        return original(builder, _widened(left), _widened(right), *others)

    return multiply


def _widened(handle: TensorHandle) -> TensorHandle:
    """Turn bf16 into fp32; leave everything else."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    values = handle.data.view(ml_dtypes.bfloat16).astype(np.float32)
    return TensorHandle(values, tl.float32)
