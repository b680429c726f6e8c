"""ONNX Runtime's CPU provider for small graphs in memory, without fusions that round."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]


def run(model: ir.Model, feeds: dict[str, Array]) -> Array:
    """Return the first output."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def error(found: Array, expected: Array) -> float:
    """max|a - b| / max|b|."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())
