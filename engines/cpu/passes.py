"""The passes for ONNX Runtime's CPU provider, in their order."""

from ..lowering import Pass
from .compute_in_fp32 import ComputeInFloat32
from .fuse_experts import FuseExperts
from .tile_vision_attention import TileVisionAttention
from .widen_fp4 import WidenFP4


def passes() -> list[Pass]:
    """Return the passes, to be run in this order."""
    return [ComputeInFloat32(), WidenFP4(), FuseExperts(), TileVisionAttention()]
