"""Which sizes of experts the kernels of `QMoE` take; without ONNX, for estimates.

Source: the kernels of onnxruntime-gpu 1.31.1 by their names, over stand-ins for CUDA's libraries,
and `moe_kernels.cu` of its repository.
"""

from collections.abc import Iterable

_WIDTH_STEP = 64
"""Of the kernel's interleaved weights: hidden and inner sizes are multiples of it."""
_COUNTS_BY_TOKEN = (2, 4, 6, 8)
"""Experts of a token whose rows are put in order by one kernel and not by three; 8 rows, those of
one token, are also the most that are multiplied row by row, in half as many kernels."""
_MOST_EXPERTS = 256
"""That one warp chooses from."""


def takes_sizes(sizes: Iterable[int]) -> bool:
    """Tell whether the kernel takes experts of these hidden and inner sizes."""
    return all(size % _WIDTH_STEP == 0 for size in sizes)


def takes_shared(*, by_token: int, experts: int, shared: int) -> bool:
    """Tell whether shared experts among the routed ones cost no kernel more.

    Args:
        by_token: routed experts of a token.
        experts: all routed ones.
        shared: experts that the shared MLP is cut into.
    """
    return by_token + shared in _COUNTS_BY_TOKEN and experts + shared <= _MOST_EXPERTS
