"""The passes for ONNX Runtime's CUDA provider, in their order."""

from ...lowering import Pass
from ...passes.fuse_experts import FuseExperts
from ...passes.inline_bodies import InlineBodies
from ...passes.unique_names import UniqueNames
from .choose_best import ChooseBestByTopK
from .coded_experts import CodedExperts
from .coded_products import CodedProducts
from .one_projection import OneProjection
from .products_by_head import ProductsByHead
from .scaled_attention import ScaledAttention
from .skip_norms import SkipNorms
from .wide_features import WideFeatures


def passes() -> list[Pass]:
    """Return the passes, to be run in this order."""
    return [
        CodedExperts(),
        FuseExperts(cuts_routers=True),
        CodedProducts(),
        OneProjection(),
        ScaledAttention(),
        ProductsByHead(),
        InlineBodies(),
        ChooseBestByTopK(),
        WideFeatures(),
        UniqueNames(),
    ]


def joined_passes() -> list[Pass]:
    """Return the passes over layers and head once they are one graph."""
    return [SkipNorms()]
