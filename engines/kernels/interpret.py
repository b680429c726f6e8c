"""Run a kernel on the CPU, program by program, in Triton's interpreter: slow, for small sizes.

Triton decides when it is imported, so `TRITON_INTERPRET=1` must be set before that.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .attributes import make_launch
from .compile import find_function
from .specs import OpSpec

if TYPE_CHECKING:
    import torch


def run_interpreted(op: OpSpec, tensors: Mapping[str, "torch.Tensor"], num_tokens: int) -> None:
    """Run the variant of an op that a device would run; outputs are written in place.

    Args:
        op: from `engines.kernels.ops`.
        tensors: inputs and outputs by the kernel's names, on the CPU, rows beside each other.
        num_tokens: N.
    """
    from .interpreted_bf16 import correct_bf16

    launch = make_launch(op, ())
    variant = launch.variant_for(num_tokens)
    grid = launch.grid(variant, num_tokens)
    kernel = op.variants[launch.variants.index(variant)].kernel
    values = {one.name: tensors.get(one.name, num_tokens) for one in kernel.parameters}
    with correct_bf16():
        find_function(kernel)[(grid.x, grid.y)](**values, **kernel.constants)
