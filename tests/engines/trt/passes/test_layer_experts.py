"""TensorRT's own layer: what it means in ONNX Runtime, and where it is refused."""

from pathlib import Path

import onnx_ir as ir
import pytest

from engines.lowering import lower
from engines.trt.passes import LoweringOptions, passes

from .layers import MAX_TOKENS, embed, example, lowered, recipe, relative_error, run, write_layer


def options(*sms: int) -> LoweringOptions:
    return LoweringOptions(max_tokens=MAX_TOKENS, sms=sms, experts="layer")


def test_the_layer_means_what_the_neutral_graph_means(tmp_path: Path) -> None:
    path = write_layer(tmp_path, recipe("fp32"))
    inputs = example(5, (7, 2))
    expected = run(ir.load(path), tmp_path, inputs)
    found = run(embed(lowered(path, options(100))), tmp_path, inputs)
    assert max(map(relative_error, found, expected)) < 1e-5


@pytest.mark.parametrize(
    ("sms", "formats", "words"),
    [
        ((100, 120), ("",), "no such layer on sm120"),
        ((103,), ("int8",), r"the layer takes plain experts: \['int8'\]"),
        ((110,), ("fp8", "fp8"), r"the layer takes plain experts: \['fp8', "),
    ],
)
def test_what_the_layer_does_not_take_is_refused(
    sms: tuple[int, ...], formats: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    path = write_layer(tmp_path, recipe("bf16", *formats))
    with pytest.raises(RuntimeError, match=words):
        lower(ir.load(path), passes(options(*sms)))
