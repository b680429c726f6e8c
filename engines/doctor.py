"""What a machine has for this toolkit: processor, memory, disk, packages, GPU.

Reads /proc and the metadata of packages; imports only ONNX Runtime, to see that it loads.
"""

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.cores import Cores
from runtime.errors import UnsupportedError
from runtime.extras import install_advice
from runtime.ops.library import find_library, instruction_set

Level = Literal["ok", "warn", "fail"]

NEEDED_PYTHON = (3, 11)
NEEDED_ONNXRUNTIME = (1, 30)
NEEDED_ONNXRUNTIME_GPU = (1, 31)
"""Of target `cuda`: earlier kernels replay a recording with the sizes of its first run."""
LITTLE_MEMORY_BYTES = 4 << 30
"""What an export of the released sizes takes beside the page cache."""
RELEASED_16_BIT_BYTES = 62_000_000_000
"""An artifact of the released sizes with 16-bit weights; fp32 takes twice as much."""

_TOOL_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "safetensors", "huggingface-hub")
_OPTIONAL_PACKAGES = {
    "tensorrt-rtx": "to build for RTX cards: pip install -e '.[plans]'",
    "tensorrt": "to build for the data-centre GPU at hand: pip install -e '.[plans,trt]'",
    "triton": "to compile GPU kernels: pip install -e '.[plans]'",
}
_INSTRUCTIONS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX": ("amx_tile",),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    value: str
    level: Level = "ok"
    advice: str = ""
    """What to do about it; empty when nothing needs to be done."""


def examine() -> list[Finding]:
    """Look at this machine; nothing is changed."""
    return [
        check_python(sys.version_info[:3]),
        check_cores(os.cpu_count() or 1, Cores.of_this_process()),
        check_instructions(_read("/proc/cpuinfo")),
        check_memory(_read("/proc/meminfo")),
        check_disk(shutil.disk_usage(Path.cwd()).free),
        check_huge_pages(_read("/sys/kernel/mm/transparent_hugepage/enabled")),
        check_custom_ops(),
        check_onnxruntime(_version("onnxruntime") or _version("onnxruntime-gpu")),
        check_providers(),
        check_cuda_provider(_version("onnxruntime-gpu"), _version("onnxruntime")),
        *_check_packages(),
        check_gpu(_read("/proc/driver/nvidia/version")),
        check_hub(),
    ]


def check_python(version: tuple[int, ...]) -> Finding:
    """Compare the interpreter with what the toolkit needs."""
    shown = ".".join(map(str, version))
    if version < NEEDED_PYTHON:
        needed = ".".join(map(str, NEEDED_PYTHON))
        return Finding(name="python", value=shown, level="fail", advice=f"use {needed} or newer")
    return Finding(name="python", value=shown)


def check_cores(present: int, cores: Cores) -> Finding:
    """Say how many cores this process may use, and how many threads an engine starts on them."""
    threads = f"{cores.threads} thread{'' if cores.threads == 1 else 's'}: {cores.reason}"
    return Finding(name="cores", value=f"{cores.allowed} allowed of {present}; {threads}")


def check_instructions(cpuinfo: str) -> Finding:
    """Look for the vector instructions that ONNX Runtime's fast kernels use."""
    match = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    if match is None:
        advice = "not tried on this kind of processor; x86 is what was tested"
        return Finding(name="instructions", value="not x86", level="warn", advice=advice)
    flags = set(match[1].split())
    found = [name for name, any_of in _INSTRUCTIONS.items() if flags & set(any_of)]
    value = ", ".join(found) or "none of " + ", ".join(_INSTRUCTIONS)
    if "AVX2" not in found:
        advice = "works, but slowly; use a processor with AVX2"
        return Finding(name="instructions", value=value, level="warn", advice=advice)
    return Finding(name="instructions", value=value)


def check_memory(meminfo: str) -> Finding:
    """Compare the memory that is free with what an export takes."""
    sizes = {
        name: int(kib) * 1024
        for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)
    }
    available = sizes.get("MemAvailable", 0)
    if not available:
        return Finding(name="memory", value="unknown", level="warn", advice="look at `free -g`")
    value = f"{_gigabytes(available)} available of {_gigabytes(sizes.get('MemTotal', 0))}"
    if available < LITTLE_MEMORY_BYTES:
        advice = f"the released sizes need {_gigabytes(LITTLE_MEMORY_BYTES)}; end other programs"
        return Finding(name="memory", value=value, level="warn", advice=advice)
    return Finding(name="memory", value=value)


def check_disk(free_bytes: int) -> Finding:
    """Compare the space in the current folder with an artifact of the released sizes."""
    value = f"{_gigabytes(free_bytes)} free here"
    if free_bytes < RELEASED_16_BIT_BYTES:
        size, twice = RELEASED_16_BIT_BYTES, 2 * RELEASED_16_BIT_BYTES
        advice = f"the released sizes take {_gigabytes(size)}, {_gigabytes(twice)} in fp32"
        return Finding(name="disk", value=value, level="warn", advice=advice)
    return Finding(name="disk", value=value)


def check_huge_pages(enabled: str) -> Finding:
    """Say whether memory can come in huge pages, which large tables are read faster from."""
    match = re.search(r"\[(\w+)\]", enabled)
    return Finding(name="huge pages", value=match[1] if match else "unknown")


def check_custom_ops() -> Finding:
    """Look for the library of kernels that target `cpu` is faster with, and what it would use."""
    name = "custom ops"
    try:
        library = find_library()
    except UnsupportedError as error:
        return Finding(name=name, value="cannot be used", level="warn", advice=str(error))
    if library is None:
        return Finding(name=name, value="not there", advice="`make ops` makes target cpu faster")
    return Finding(name=name, value=instruction_set(library))


def check_onnxruntime(version: str | None) -> Finding:
    """Compare ONNX Runtime with the first version that has the ops of opset 24."""
    needed = ".".join(map(str, NEEDED_ONNXRUNTIME))
    advice = f"pip install 'onnxruntime>={needed}'; older ones lack TensorScatter of opset 24"
    if version is None:
        return Finding(name="onnxruntime", value="not installed", level="fail", advice=advice)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < NEEDED_ONNXRUNTIME:
        return Finding(name="onnxruntime", value=version, level="fail", advice=advice)
    return Finding(name="onnxruntime", value=version)


def check_providers() -> Finding:
    """Load ONNX Runtime and list what it can run on."""
    name = "onnxruntime providers"
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except (ImportError, OSError, AttributeError) as error:
        reason = " ".join(str(error).split())
        advice = "pip install --force-reinstall onnxruntime"
        return Finding(name=name, value=f"does not load: {reason}", level="fail", advice=advice)
    shown = ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers)
    return Finding(name=name, value=shown)


def check_cuda_provider(version: str | None, other: str | None) -> Finding:
    """Look for the ONNX Runtime that target `cuda` runs on, and for another one over its files.

    Args:
        version: of onnxruntime-gpu.
        other: of onnxruntime, which brings files of the same names.
    """
    name = "onnxruntime-gpu"
    if version is None:
        advice = f"to run target cuda: {install_advice('cuda')}"
        return Finding(name=name, value="not installed", advice=advice)
    if other is not None:
        value = f"{version}, and onnxruntime {other} in the same folder"
        advice = (
            "pip uninstall onnxruntime, then "
            "pip install --force-reinstall --no-deps onnxruntime-gpu: one overwrites the other"
        )
        return Finding(name=name, value=value, level="warn", advice=advice)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < NEEDED_ONNXRUNTIME_GPU:
        needed = ".".join(map(str, NEEDED_ONNXRUNTIME_GPU))
        advice = f"target cuda needs {needed}: pip install -U 'onnxruntime-gpu>={needed}'"
        return Finding(name=name, value=version, level="warn", advice=advice)
    return Finding(name=name, value=version)


def check_package(name: str, version: str | None, advice: str, *, is_needed: bool) -> Finding:
    """Say which version of a package is there; one that the tool needs is worth a warning."""
    if version is not None:
        return Finding(name=name, value=version)
    level: Level = "warn" if is_needed else "ok"
    return Finding(name=name, value="not installed", level=level, advice=advice)


def check_gpu(driver: str) -> Finding:
    """Name the NVIDIA driver and its GPUs, from the driver's own files."""
    if not driver:
        if shutil.which("nvidia-smi"):
            advice = "nvidia-smi is there, but the kernel driver is not loaded"
            return Finding(name="gpu", value="no driver", level="warn", advice=advice)
        return Finding(name="gpu", value="no NVIDIA driver", advice="not needed for target cpu")
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", driver)
    files = Path("/proc/driver/nvidia/gpus").glob("*/information")
    models = re.findall(r"^Model:\s*(.+)$", "\n".join(map(_read, files)), re.MULTILINE)
    shown = ", ".join(models) or "no GPU visible"
    return Finding(name="gpu", value=f"{shown}; driver {version[0] if version else 'unknown'}")


def check_hub() -> Finding:
    """Say where the Hugging Face cache is, and whether the hub may be asked."""
    name = "hugging face cache"
    try:
        from huggingface_hub import constants
    except ImportError:
        return Finding(name=name, value="huggingface-hub is not installed")
    mode = "offline" if constants.HF_HUB_OFFLINE else "online"
    return Finding(name=name, value=f"{constants.HF_HUB_CACHE} ({mode})")


def _check_packages() -> Iterator[Finding]:
    for name in _TOOL_PACKAGES:
        advice = "for export, build and verify: pip install -e '.[tool]'"
        yield check_package(name, _version(name), advice, is_needed=True)
    for name, advice in _OPTIONAL_PACKAGES.items():
        yield check_package(name, _version(name), advice, is_needed=False)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str | Path) -> str:
    """Return a small file's text, empty where it is not there or not ours to read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.0f} GB"
