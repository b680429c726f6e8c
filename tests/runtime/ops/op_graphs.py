"""Graphs of one custom op, run with the library's kernel; and what its codes mean, in numpy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

Array = NDArray[Any]
_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
}


def open_op(
    library: Path,
    domain: str,
    name: str,
    given: list[Array],
    outputs: Sequence[type],
    *,
    before: int | None = None,
    **stored: Array | float,
) -> ort.InferenceSession:
    """Make a session of one node.

    Args:
        library: holds the kernel; there is no body, so that nothing else can run.
        domain: of the op.
        name: of the op.
        given: what is fed, for its types and ranks: inputs `i0`, `i1`, ...
        outputs: types of `o0`, `o1`, ...
        before: how many of them come before the stored ones; all, if left out.
        **stored: initialisers, in order; and attributes, which are plain numbers.
    """
    attributes: dict[str, Any] = {k: v for k, v in stored.items() if np.ndim(v) == 0}
    tensors = {key: value for key, value in stored.items() if isinstance(value, np.ndarray)}
    inputs = [f"i{index}" for index in range(len(given))]
    results = [f"o{index}" for index in range(len(outputs))]
    order = [*inputs[:before], *tensors, *(inputs[before:] if before is not None else [])]
    node = helper.make_node(name, order, results, domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(key, _TYPES[value.dtype], [None] * value.ndim)
            for key, value in zip(inputs, given, strict=True)
        ],
        [
            helper.make_tensor_value_info(key, _TYPES[np.dtype(one)], None)
            for key, one in zip(results, outputs, strict=True)
        ],
        [_initializer(key, value) for key, value in tensors.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 24), helper.make_opsetid(domain, 1)],
        ir_version=11,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options)


def _initializer(name: str, value: Array) -> onnx.TensorProto:
    raw = np.ascontiguousarray(value).tobytes()
    return onnx.TensorProto(
        name=name, data_type=_TYPES[value.dtype], dims=value.shape, raw_data=raw
    )


def run_op(session: ort.InferenceSession, *given: Array) -> list[Array]:
    """Run it on `given`, in order."""
    found: list[Array] = session.run(None, {f"i{i}": one for i, one in enumerate(given)})
    return found


def pack(codes: Array, bits: int, block: int) -> Array:
    """Lay signed codes (N, K) out as `MatMulNBits` has them: (N, K / block, bytes of a block)."""
    rows, columns = codes.shape
    unsigned: Array = (codes + (1 << (bits - 1))).astype(np.uint8)
    if bits == 4:
        unsigned = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    return unsigned.reshape(rows, columns // block, block * bits // 8)


def meaning(codes: Array, scales: Array, block: int) -> Array:
    """What codes (N, K) with scales (N, K / block) mean, float64."""
    return codes.astype(np.float64) * np.repeat(scales.astype(np.float64), block, axis=1)


def rounded(x: Array, block: int) -> Array:
    """Rows (N, K) rounded to int8 in blocks, as what they then mean, float64."""
    blocks = x.reshape(len(x), -1, block)
    most = np.abs(blocks).max(axis=-1, keepdims=True)
    scales = most / np.float32(127)
    inverse = np.divide(np.float32(127), most, where=most > 0, out=np.zeros_like(most))
    found: Array = (np.rint(blocks * inverse) * scales.astype(np.float64)).reshape(x.shape)
    return found
