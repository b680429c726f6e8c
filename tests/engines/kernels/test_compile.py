"""Kernels compiled ahead of time, on a machine without a device."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from engines.kernels.compile import COMPILED, _check_parameters, compile_kernel
from engines.kernels.ops import grouped_down_op, grouped_up_op, router_op, sort_op
from engines.kernels.specs import ExpertSizes, KernelSpec, OpSpec
from runtime.errors import UnsupportedError

from .test_experts import make_form

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]
SMALL = ExpertSizes(width=128, inner=64, num_experts=8, num_chosen=3)
REAL = ExpertSizes(width=2048, inner=1408, num_experts=64, num_chosen=6)
FORMATS = [("bf16", "bf16", 0), ("fp16", "int8", 0), ("bf16", "fp8", 0), ("bf16", "int4", 32)]


def kernels(op: OpSpec) -> list[KernelSpec]:
    return [variant.kernel for variant in op.variants]


@pytest.mark.parametrize("sm", COMPILED)
def test_every_op_compiles_for_every_device(sm: int) -> None:
    ops = (
        router_op(SMALL, scale=2.5, normalize=True),
        sort_op(SMALL),
        grouped_up_op(SMALL, make_form("bf16", "int4", 64)),
        grouped_down_op(SMALL, make_form("fp16", "fp16", 0)),
    )
    for kernel in (kernel for op in ops for kernel in kernels(op)):
        made = compile_kernel(kernel, sm)
        assert made.entry == kernel.function
        assert f".target sm_{sm}" in made.ptx
        assert made.cubin.startswith(b"\x7fELF")
        assert made.arguments[-2:] == ("null", "null")


@pytest.mark.slow
@pytest.mark.parametrize("sm", [89, 120])
@pytest.mark.parametrize(("base", "codes", "group"), FORMATS)
def test_the_released_sizes_compile_in_every_format(
    base: str, codes: str, group: int, sm: int
) -> None:
    form = make_form(base, codes, group)
    for op in (grouped_up_op(REAL, form), grouped_down_op(REAL, form)):
        few, many = (compile_kernel(kernel, sm) for kernel in kernels(op))
        # Two of the small ones, at least, share a multiprocessor.
        assert few.shared_bytes <= 101376 // 2
        assert many.shared_bytes <= 101376


def test_the_same_input_gives_the_same_bytes_in_every_process() -> None:
    (kernel,) = kernels(sort_op(SMALL))
    here = compile_kernel(kernel, 89)
    assert compile_kernel(kernel, 89) == here
    script = """
import sys
from engines.kernels.compile import compile_kernel
from engines.kernels.ops import sort_op
from engines.kernels.specs import ExpertSizes
sizes = ExpertSizes(width=128, inner=64, num_experts=8, num_chosen=3)
sys.stdout.buffer.write(compile_kernel(sort_op(sizes).variants[0].kernel, 89).cubin)
"""
    command = [sys.executable, "-c", script]
    there = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert there.stdout == here.cubin


def test_no_path_and_no_line_is_in_what_is_compiled() -> None:
    for kernel in kernels(grouped_down_op(SMALL, make_form("fp16", "int8", 0))):
        made = compile_kernel(kernel, 89)
        everything = made.cubin + made.ptx.encode()
        for place in (str(ROOT), tempfile.gettempdir(), sys.prefix, ".py", "experts.py"):
            assert place.encode() not in everything
        assert not re.search(r"^\s*\.(file|loc)\b", made.ptx, re.MULTILINE)


@pytest.mark.parametrize(("codes", "sm"), [("int8", 75), ("fp8", 86), ("fp8", 80), ("int8", 87)])
def test_devices_without_kernels_are_refused(codes: str, sm: int) -> None:
    (kernel, _) = kernels(grouped_up_op(SMALL, make_form("fp16", codes, 0)))
    kind = "no fp8 kernel" if codes == "fp8" else "no kernel"
    with pytest.raises(UnsupportedError, match=f"grouped_up for sm{sm}: {kind}, .*--no-plugins"):
        compile_kernel(kernel, sm)


def test_a_triton_with_other_parameters_is_noticed() -> None:
    (kernel,) = kernels(sort_op(SMALL))
    ptx = ".visible .entry sort_by_expert(\n .param .u64 .ptr a,\n .param .u64 .ptr b\n)\n.param"
    with pytest.raises(RuntimeError, match="sort_by_expert: 2 parameters in the PTX, expected 6"):
        _check_parameters(kernel, ptx)
