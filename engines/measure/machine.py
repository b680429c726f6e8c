"""What figures were measured on: processor, memory, versions."""

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.errors import UnsupportedError
from runtime.ops.library import find_library, instruction_set

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_PACKAGES = ("onnxruntime", "numpy", "tensorrt_rtx", "tensorrt")
_SCALES = {"": 1, "K": 1 << 10, "M": 1 << 20}


def describe_machine() -> dict[str, Any]:
    """Name processor, cores, memory and kernels."""
    return {
        "cpu": cpu_name(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "last_cache_bytes": last_cache_bytes(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "kernels": _kernels(),
    }


def describe_versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Name Python and those of some packages that are there."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """Read the processor's name."""
    text = _CPUINFO.read_text() if _CPUINFO.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()


def last_cache_bytes(folder: Path = _CACHES) -> int:
    """Read the size of the last cache; 0 where the system does not say."""
    sizes = [0]
    for path in folder.glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KM]?)", path.read_text().strip())
        if found:
            sizes.append(int(found[1]) * _SCALES[found[2]])
    return max(sizes)


def _kernels() -> str | None:
    """Name the instructions of the library of custom ops; None where bodies in stock ops run."""
    try:
        library = find_library()
    except UnsupportedError:
        return None
    return None if library is None else instruction_set(library)
