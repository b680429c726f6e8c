"""Which sizes of experts the kernel of `QMoE` takes; without ONNX, for estimates."""

from collections.abc import Iterable

_WIDTH_STEP = 64
"""Of the kernel's interleaved weights: hidden and inner sizes are multiples of it."""


def takes_sizes(sizes: Iterable[int]) -> bool:
    """Tell whether the kernel takes experts of these hidden and inner sizes."""
    return all(size % _WIDTH_STEP == 0 for size in sizes)
