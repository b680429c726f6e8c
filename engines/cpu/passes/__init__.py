"""The passes for ONNX Runtime's CPU provider, in their order."""

from ...lowering import Pass
from ...passes.fuse_experts import FuseExperts
from .block_experts import BlockExperts
from .block_linears import BlockLinears
from .cache_attention import CacheAttention
from .compute_in_fp32 import ComputeInFloat32
from .tile_vision_attention import TileVisionAttention
from .widen_fp4 import WidenFP4


def passes(*, may_round_activations: bool) -> list[Pass]:
    """Return the passes, to be run in this order.

    Args:
        may_round_activations: whether the recipe lets what meets integer codes be rounded.
    """
    return [
        ComputeInFloat32(),
        WidenFP4(),
        BlockExperts(may_round=may_round_activations),
        FuseExperts(),
        BlockLinears(may_round=may_round_activations),
        CacheAttention(may_round=may_round_activations),
        TileVisionAttention(),
    ]
