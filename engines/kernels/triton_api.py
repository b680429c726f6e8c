"""All that differs between versions of Triton, and its decorator with a type.

Source: triton 3.6 and 3.9, `compiler/compiler.py`, `knobs.py`.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

Constant = int | float | None


class Kernel(Protocol):
    """A function of Triton's language: run by its interpreter, or compiled."""

    __name__: str
    arg_names: list[str]

    def __call__(self, *values: tl.tensor) -> tl.tensor:
        """Call it from another kernel."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Give what runs it on a grid."""


class Compiled(Protocol):
    """What Triton's compiler returns."""

    asm: Mapping[str, Any]
    metadata: Any


def kernel(function: Callable[..., Any]) -> Kernel:
    """Make a kernel, or a function that kernels call; `TRITON_INTERPRET=1` means interpreted."""
    made: Kernel = triton.jit(function)
    return made


def compile_for(
    function: Kernel,
    *,
    types: Mapping[str, str],
    constants: Mapping[str, Constant],
    sm: int,
    options: Mapping[str, int],
) -> Compiled:
    """Compile ahead of time, without a device.

    Args:
        function: the kernel.
        types: type of each run-time parameter, as in `*fp16`; pointers are multiples of 16 bytes.
        constants: value of every other parameter.
        sm: compute capability of the device, as in 89.
        options: `num_warps`, `num_stages`.

    Raises:
        CompilationError, PTXASError: of Triton; a mistake of ours.
    """
    names = function.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in types.items()
        if kind.startswith("*")
    }
    source = ASTSource(function, signature, constexprs=dict(constants), attrs=aligned)
    with _reproducible():
        compiled: Compiled = triton.compile(
            source,
            target=GPUTarget("cuda", sm, 32),
            options={**options, "enable_fp_fusion": True},  # as all versions up to 3.9 do unasked
        )
    return compiled


@contextmanager
def _reproducible() -> Iterator[None]:
    """Leave no paths and lines in what is compiled, and nothing in a cache."""
    knobs = triton.knobs
    with ExitStack() as stack:
        for group in (knobs.compilation, knobs.cache):
            stack.enter_context(group.scope())
        knobs.cache.dir = stack.enter_context(tempfile.TemporaryDirectory())
        knobs.compilation.disable_line_info = True
        yield
