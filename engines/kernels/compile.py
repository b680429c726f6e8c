"""Compile kernels ahead of time, on any machine: Triton source to PTX and cubin."""

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import UnsupportedError

from .specs import KernelSpec

if TYPE_CHECKING:
    from .triton_api import Kernel

COMPILED = (80, 86, 89, 90, 100, 120, 121)
"""Compute capabilities that Triton makes code for."""
FIRST_WITH_FP8 = 89

_MAX_SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448}
_MAX_SHARED_BYTES |= {100: 232448, 120: 101376, 121: 101376}
"""Of one block of threads. Source: CUDA C++ Programming Guide, "Technical Specifications"."""

_ENTRY = re.compile(r"\.visible \.entry \w+\((.*?)\)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class CompiledKernel:
    """A kernel for one compute capability."""

    entry: str
    """Name of the function."""
    sm: int
    cubin: bytes
    ptx: str
    num_warps: int
    shared_bytes: int
    """Dynamic shared memory of a launch."""
    arguments: tuple[str, ...]
    """What a launch passes, in order; see `runtime.plugins.launch.Launch.arguments`."""


@functools.cache
def compile_kernel(spec: KernelSpec, sm: int) -> CompiledKernel:
    """Compile a kernel for one compute capability, once; the same input gives the same bytes.

    Args:
        spec: what is compiled.
        sm: compute capability, as in 89; one of `COMPILED`.

    Raises:
        UnsupportedError: there are no kernels for this device, or not in this format.
    """
    try:
        from .triton_api import compile_for
    except ImportError as error:
        raise UnsupportedError(
            f"triton, which compiles our kernels, is not installed or does not load ({error}): "
            "pip install -e '.[plans]' in a checkout, or build with --no-plugins"
        ) from error

    kinds = {parameter.name: parameter.kind for parameter in spec.parameters}
    _check_device(spec, sm)
    compiled = compile_for(
        find_function(spec),
        types=kinds,
        constants=spec.constants,
        sm=sm,
        options={"num_warps": spec.num_warps, "num_stages": spec.num_stages},
    )
    about, ptx = compiled.metadata, str(compiled.asm["ptx"])
    _check_parameters(spec, ptx)
    if about.global_scratch_size or about.profile_scratch_size:
        raise RuntimeError(f"{spec.function} for sm{sm} wants scratch memory, a launch has none")
    if about.shared > _MAX_SHARED_BYTES[sm]:
        raise RuntimeError(
            f"{spec.function} for sm{sm}: {about.shared} bytes of shared memory, "
            f"the device has {_MAX_SHARED_BYTES[sm]}"
        )
    return CompiledKernel(
        entry=about.name,
        sm=sm,
        cubin=bytes(compiled.asm["cubin"]),
        ptx=ptx,
        num_warps=about.num_warps,
        shared_bytes=about.shared,
        arguments=spec.arguments,
    )


def _check_device(spec: KernelSpec, sm: int) -> None:
    is_fp8 = any(parameter.kind == "*fp8e4nv" for parameter in spec.parameters)
    able = [one for one in COMPILED if one >= FIRST_WITH_FP8 or not is_fp8]
    if sm not in able:
        kind = "no fp8 kernel" if is_fp8 else "no kernel"
        known = ", ".join(f"sm{one}" for one in able)
        raise UnsupportedError(
            f"{spec.function} for sm{sm}: {kind}, there are some for {known}; "
            "build with --no-plugins"
        )


def find_function(spec: KernelSpec) -> "Kernel":
    """Give the function behind a spec."""
    from . import experts, router, sort

    functions: dict[str, Kernel] = {
        "route": router.route,
        "sort_by_expert": sort.sort_by_expert,
        "grouped_up": experts.grouped_up,
        "grouped_down": experts.grouped_down,
    }
    return functions[spec.function]


def _check_parameters(spec: KernelSpec, ptx: str) -> None:
    entry = _ENTRY.search(ptx)
    found = entry[1].count(".param") if entry else 0
    if found != len(spec.arguments):
        raise RuntimeError(
            f"{spec.function}: {found} parameters in the PTX, expected {len(spec.arguments)}; "
            "this version of Triton passes others than 3.6 to 3.9"
        )
