"""What every pass that chooses the best of each row refuses."""

import onnx
import onnx_ir as ir
import pytest

from engines.cuda.passes.choose_best import ChooseBestByTopK
from engines.lowering import lower
from engines.passes.choose_best import ChooseBest
from engines.trt.passes.choose_best import ChooseBestByReduction

PASSES = (ChooseBestByTopK(), ChooseBestByReduction())
pytestmark = pytest.mark.parametrize("step", PASSES, ids=lambda one: str(one.name))


def head(dtype: str = "float", vocabulary: str = "7") -> ir.Model:
    """A head that gives as logits what it is given."""
    kind = f"{dtype}[N, {vocabulary}]"
    text = f"g ({kind} x) => ({kind} logits) {{ logits = Identity (x) }}"
    model = onnx.parser.parse_model(f'<ir_version: 12, opset_import: ["": 24]>\n{text}')
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def test_logits_of_another_type_are_refused(step: ChooseBest) -> None:
    with pytest.raises(
        RuntimeError, match=rf"{step.name} .* requires: logits are FLOAT16, not fp32"
    ):
        lower(head("float16"), [step])


def test_logits_without_a_fixed_vocabulary_are_refused(step: ChooseBest) -> None:
    with pytest.raises(RuntimeError, match="logits without a fixed vocabulary"):
        lower(head(vocabulary="V"), [step])


def test_a_head_that_chooses_already_is_refused(step: ChooseBest) -> None:
    model = lower(head(), [step]).model
    with pytest.raises(RuntimeError, match=r"there are outputs .* already"):
        lower(model, [step])
