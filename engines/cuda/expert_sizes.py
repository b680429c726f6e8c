"""Which sizes of experts the kernels of `QMoE` take; without ONNX, for estimates.

Source: the kernels of onnxruntime-gpu 1.31.1 by their names, over stand-ins for CUDA's libraries,
and `moe_kernels.cu` of its repository.
"""

from collections.abc import Iterable

_WIDTH_STEP = 64
"""Of the kernel's interleaved weights: hidden and inner sizes are multiples of it."""
_MOST_BY_TOKEN = 8
"""Rows that are multiplied one by one, as those of a single token, in half as many kernels."""
_MOST_EXPERTS = 256
"""That one warp chooses from."""


def takes_sizes(sizes: Iterable[int]) -> bool:
    """Tell whether the kernel takes experts of these hidden and inner sizes."""
    return all(size % _WIDTH_STEP == 0 for size in sizes)


def takes_shared(*, by_token: int, experts: int, shared: int) -> bool:
    """Tell whether shared experts among the routed ones leave the kernel for one token what it is.

    Other counts than 1, 2, 4, 6 and 8 are put in order by three kernels and not by one, which is
    still less than what a shared MLP of its own launches.

    Args:
        by_token: routed experts of a token.
        experts: all routed ones.
        shared: experts that the shared MLP is cut into.
    """
    return by_token + shared <= _MOST_BY_TOKEN and experts + shared <= _MOST_EXPERTS
