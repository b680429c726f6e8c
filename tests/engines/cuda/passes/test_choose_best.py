"""The best of each row beside the logits, by `TopK`: in ONNX Runtime as numpy would choose."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import parser

from engines.cuda.passes.choose_best import ChooseBestByTopK
from engines.lowering import lower
from runtime.names import BEST, ENERGY

SIZES = (7, 768, 1021, 2048, 3 * 1024, 2 * 1021)
"""One piece, several, a prime, twice a prime."""


def choose(rows: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    size = rows.shape[1]
    text = f"g (float[N, {size}] x) => (float[N, {size}] logits) {{ logits = Identity (x) }}"
    parsed = parser.parse_model(f'<ir_version: 12, opset_import: ["": 24]>\n{text}')
    model = lower(ir.from_proto(onnx.shape_inference.infer_shapes(parsed)), [ChooseBestByTopK()])
    content = ir.to_proto(model.model).SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    outputs = [one.name for one in session.get_outputs()]
    assert outputs == ["logits", BEST, ENERGY]
    return dict(zip(outputs, session.run(None, {"x": rows}), strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_of_equal_logits_the_lowest_id_is_best(size: int) -> None:
    random = np.random.default_rng(size)
    rows = random.integers(-3, 4, (20, size)).astype(np.float32)  # each maximum is there often
    rows[0] = 5
    rows[1] = -5
    rows[2, -1] = 100
    rows[3] = -3e38
    found = choose(rows)
    assert found[BEST].dtype == np.int32
    assert found[BEST].tolist() == rows.argmax(axis=1).tolist()


@pytest.mark.parametrize("place", [0, 1500, 2047])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_energy_tells_which_rows_are_not_finite(value: float, place: int) -> None:
    rows = np.random.default_rng(0).standard_normal((4, 2048)).astype(np.float32)
    rows[2, place] = value
    found = choose(rows)
    assert np.isfinite(found[ENERGY]).tolist() == [True, True, False, True]
    assert found[BEST][[0, 1, 3]].tolist() == rows[[0, 1, 3]].argmax(axis=1).tolist()


def test_nothing_is_used_that_onnx_runtime_gives_to_cudnn() -> None:
    text = "g (float[N, 2048] x) => (float[N, 2048] logits) { logits = Identity (x) }"
    parsed = parser.parse_model(f'<ir_version: 12, opset_import: ["": 24]>\n{text}')
    model = lower(ir.from_proto(onnx.shape_inference.infer_shapes(parsed)), [ChooseBestByTopK()])
    used = {node.op_type for node in model.model.graph}
    assert not used & {"ReduceMax", "ReduceMin", "ArgMax"}
    assert "TopK" in used
