"""The best of each row beside the logits: in ONNX Runtime as numpy would choose."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from engines.lowering import lower
from engines.trt.passes import LoweringOptions
from engines.trt.passes.choose_best import ChooseBestByReduction
from runtime.names import BEST, ENERGY, HIDDEN, HIDDEN_OUT, LOGITS

from .layers import CONFIG, MAX_TOKENS, Array, embed, lowered, recipe, run, write_layer

VOCAB = 7
OPTIONS = LoweringOptions(max_tokens=MAX_TOKENS, sms=(89,), experts="dense")


def bare() -> ir.Model:
    """A head that gives as logits what it is given."""
    text = f"g (float[N, {VOCAB}] x) => (float[N, {VOCAB}] logits) {{ logits = Identity (x) }}"
    model = parser.parse_model(f'<ir_version: 12, opset_import: ["": 24]>\n{text}')
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def choose(rows: Array, folder: Path) -> dict[str, Array]:
    model = lower(bare(), [ChooseBestByReduction()]).model
    outputs = [str(value.name) for value in model.graph.outputs]
    return dict(zip(outputs, run(model, folder, {"x": rows}), strict=True))


def test_of_equal_logits_the_lowest_id_is_best(tmp_path: Path) -> None:
    rows = np.array(
        [
            [0, 3, 1, 3, -1, 3, 2],
            [5] * VOCAB,
            [-9, -8, -7, -6, -5, -4, -4],
            [0.0, -0.0, 0, 0, 0, 0, 0],
            [-3e38, -3e38, -3e38, -3e38, -3e38, -3e38, -2e38],
        ],
        dtype=np.float32,
    )
    assert choose(rows, tmp_path)[BEST].tolist() == [1, 0, 5, 0, 6]


@pytest.mark.parametrize("place", [0, 3, VOCAB - 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_energy_tells_which_rows_are_not_finite(
    value: float, place: int, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).standard_normal((4, VOCAB)).astype(np.float32)
    rows[2, place] = value
    found = choose(rows, tmp_path)
    assert np.isfinite(found[ENERGY]).tolist() == [True, True, False, True]
    assert found[BEST][[0, 1, 3]].tolist() == rows[[0, 1, 3]].argmax(axis=1).tolist()


def test_logits_as_large_as_any_head_makes_them_are_finite(tmp_path: Path) -> None:
    rows = np.full((1, VOCAB), 65504.0**2, dtype=np.float32)
    assert np.isfinite(choose(rows, tmp_path)[ENERGY]).all()


def test_no_rows_have_no_best(tmp_path: Path) -> None:
    found = choose(np.zeros((0, VOCAB), dtype=np.float32), tmp_path)
    assert [len(values) for values in found.values()] == [0, 0, 0]


@pytest.mark.parametrize(
    ("base", "formats"),
    [("fp32", ()), ("fp16", ()), ("bf16", ("int8", "int8")), ("bf16", ("fp8", "fp8"))],
    ids=str,
)
def test_a_lowered_head_gives_the_best_of_its_own_logits(
    base: str, formats: tuple[str, ...], tmp_path: Path
) -> None:
    path = write_layer(tmp_path, recipe(base, *formats), graph="head")
    model = embed(lowered(path, OPTIONS))
    assert [value.name for value in model.graph.outputs] == [LOGITS, BEST, ENERGY]
    hidden = np.random.default_rng(1).standard_normal((2, 9, CONFIG.decoder.width), np.float32)
    rows = np.array([17, 0, 8, 8, 3])
    logits, best, energy = run(model, tmp_path, {HIDDEN: hidden, "rows": rows})
    assert best.dtype == np.int32
    assert best.tolist() == logits.argmax(axis=1).tolist()
    assert best[2] == best[3]
    assert len(set(best.tolist())) > 2
    assert energy == pytest.approx((logits.astype(np.float64) ** 2).sum(axis=1), rel=1e-5)


def test_graphs_without_logits_stay_as_they_are(tmp_path: Path) -> None:
    model = ir.load(write_layer(tmp_path, recipe("fp16")))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    lowered_model = lower(model, [ChooseBestByReduction()]).model
    assert ir.to_proto(lowered_model).SerializeToString(deterministic=True) == before
    assert lowered_model.graph.outputs[0].name == HIDDEN_OUT
