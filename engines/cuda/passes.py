"""The passes for ONNX Runtime's CUDA provider, in their order."""

from ..cpu.fuse_experts import FuseExperts
from ..lowering import Pass
from ..trt.passes.inline_bodies import InlineBodies
from ..trt.passes.unique_names import UniqueNames
from .choose_best import ChooseBestByTopK
from .coded_experts import CodedExperts
from .coded_products import CodedProducts
from .products_by_head import ProductsByHead
from .scaled_attention import ScaledAttention
from .wide_features import WideFeatures


def passes() -> list[Pass]:
    """Return the passes, to be run in this order."""
    return [
        CodedExperts(),
        FuseExperts(cuts_routers=True),
        CodedProducts(),
        ScaledAttention(),
        InlineBodies(),
        ProductsByHead(),
        ChooseBestByTopK(),
        WideFeatures(),
        UniqueNames(),
    ]
