"""Bodies that gather the chosen matrices of each token, for every way in which they are stored.

Gathered are codes and scales, not what they mean, so that no other expert is read. TensorRT gathers
int8 and nothing narrower: FP8 and 4-bit codes come as bytes (E, in, bytes of a row), and a table of
256 rows says which one or two numbers a byte means.
"""

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.graph.edits import given

from .stored_experts import Storage, StoredMatrix

# (E, in, out) becomes (N, K, in, out), which meets rows (N, 1, 1, in) or (N, K, 1, in).
_PLAIN = "    {m}_chosen = Gather <axis: int = 0> ({m}, experts)\n"
_INT8 = """\
    {m}_codes = Gather <axis: int = 0> ({m}, experts)
    {m}_steps = Gather <axis: int = 0> ({m}_scale, experts)
    {m}_numbers = CastLike ({m}_codes, {m}_steps)
"""
_BYTES = """\
    {m}_bytes = Gather <axis: int = 0> ({m}, experts)
    {m}_wide = Cast <to: int = 6> ({m}_bytes)
    {m}_offset = Constant <value: tensor = int32 {{128}}> ()
    {m}_rows = Add ({m}_wide, {m}_offset)
    {m}_found = Gather <axis: int = 0> ({m}_table, {m}_rows)
    {m}_numbers_shape = Constant <value_ints: ints = [0, 0, 0, -1]> ()
    {m}_numbers = Reshape ({m}_found, {m}_numbers_shape)
"""
_STEPS = "    {m}_steps = Gather <axis: int = 0> ({m}_scale, experts)\n"
_TWO_LEVELS = """\
    {m}_step_bytes = Gather <axis: int = 0> ({m}_scale, experts)
    {m}_step_wide = Cast <to: int = 6> ({m}_step_bytes)
    {m}_step_rows = Add ({m}_step_wide, {m}_offset)
    {m}_step_numbers = Gather <axis: int = 0> ({m}_step_table, {m}_step_rows)
    {m}_steps = Mul ({m}_step_numbers, {m}_whole)
"""
# Groups of inputs share a step: (N, K, groups, of a group, out) * (N, K, groups, 1, out).
_SCALED = """\
    {m}_shape = Shape ({m}_numbers)
    {m}_groups = Shape <start: int = 0, end: int = 3> ({m}_steps)
    {m}_rest = Constant <value_ints: ints = [-1]> ()
    {m}_outs = Shape <start: int = 3, end: int = 4> ({m}_numbers)
    {m}_grouped_shape = Concat <axis: int = 0> ({m}_groups, {m}_rest, {m}_outs)
    {m}_grouped = Reshape ({m}_numbers, {m}_grouped_shape)
    {m}_step_axis = Constant <value_ints: ints = [3]> ()
    {m}_step_column = Unsqueeze ({m}_steps, {m}_step_axis)
    {m}_scaled = Mul ({m}_grouped, {m}_step_column)
    {m}_whole_rows = Reshape ({m}_scaled, {m}_shape)
    {m}_chosen = Cast <to: int = {base}> ({m}_whole_rows)
"""
_GATHERS: dict[Storage, str] = {
    "plain": _PLAIN,
    "int8": _INT8 + _SCALED,
    "fp8": _BYTES + _STEPS + _SCALED,
    "int4": _BYTES + _STEPS + _SCALED,
    "nvfp4": _BYTES + _TWO_LEVELS + _SCALED,
}
_PARAMETERS: dict[Storage, tuple[str, ...]] = {
    "plain": ("{m}",),
    "int8": ("{m}", "{m}_scale"),
    "fp8": ("{m}", "{m}_scale", "{m}_table"),
    "int4": ("{m}", "{m}_scale", "{m}_table"),
    "nvfp4": ("{m}", "{m}_scale", "{m}_whole", "{m}_table", "{m}_step_table"),
}
_UP = """\
    axes = Constant <value_ints: ints = [1, 2]> ()
    row_axis = Constant <value_ints: ints = [2]> ()
    rows = Unsqueeze (hidden, axes)
{gathers}    gated = MatMul (rows, gate_chosen)
    half = Sigmoid (gated)
    swished = Mul (gated, half)
    lifted = MatMul (rows, up_chosen)
    all = Mul (swished, lifted)
    inner = Squeeze (all, row_axis)
"""
_DOWN = """\
    row_axis = Constant <value_ints: ints = [2]> ()
    rows = Unsqueeze (inner, row_axis)
{gathers}    part_rows = MatMul (rows, down_chosen)
    parts = Squeeze (part_rows, row_axis)
    last = Constant <value_ints: ints = [-1]> ()
    score_column = Unsqueeze (scores, last)
    parts_wide = Cast <to: int = 1> (parts)
    weighted = Mul (parts_wide, score_column)
    ranks = Constant <value_ints: ints = [1]> ()
    mixed_wide = ReduceSum <keepdims: int = 0> (weighted, ranks)
    mixed = CastLike (mixed_wide, parts)
"""


def gathered_up(gate: StoredMatrix, up: StoredMatrix) -> str:
    """Write the body that computes silu(hidden @ gate[e]) * (hidden @ up[e]), (N, K, I)."""
    parameters = ", ".join([*_names("gate", gate), *_names("up", up)])
    gathers = _gather("gate", gate) + _gather("up", up)
    body = _UP.format(gathers=gathers)
    return f"GatheredUp (hidden, experts, {parameters}) => (inner)\n{{\n{body}}}"


def gathered_down(down: StoredMatrix) -> str:
    """Write the body that sums score * inner @ down[e] over a token's experts, (N, C)."""
    parameters = ", ".join(_names("down", down))
    body = _DOWN.format(gathers=_gather("down", down))
    return f"GatheredDown (inner, experts, scores, {parameters}) => (mixed)\n{{\n{body}}}"


def byte_table(storage: Storage) -> NDArray[np.float32] | None:
    """Say what a byte b means at row b + 128, for the storages that are gathered as bytes.

    Returns:
        (256,) of FP8 (E4M3), (256, 2) of two 4-bit codes, the low half first; None of others.
    """
    unsigned = np.arange(-128, 128).astype(np.int8).view(np.uint8)
    halves = np.stack([unsigned & 15, unsigned >> 4], axis=-1)
    numbers: NDArray[Any]
    match storage:
        case "fp8":
            numbers = unsigned.view(ml_dtypes.float8_e4m3fn)
        case "int4":
            numbers = (halves ^ 8).astype(np.int16) - 8
        case "nvfp4":
            numbers = halves.view(ml_dtypes.float4_e2m1fn)
        case _:
            return None
    return numbers.astype(np.float32)


def numbers_type(matrix: StoredMatrix, base: ir.DataType) -> ir.DataType:
    """Return the type in which codes are multiplied by their scales."""
    return base if matrix.whole is None else ir.DataType.FLOAT


def _names(name: str, matrix: StoredMatrix) -> list[str]:
    return [parameter.format(m=name) for parameter in _PARAMETERS[matrix.storage]]


def _gather(name: str, matrix: StoredMatrix) -> str:
    return _GATHERS[matrix.storage].format(m=name, base=given(matrix.meaning.dtype).value)
