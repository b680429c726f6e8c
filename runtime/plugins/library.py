"""Let TensorRT-RTX's ONNX parser find its own library, before it meets a plugin node.

At the first such node the parser opens `libtensorrt_rtx.so`. The wheel has only the name with
`.so.1`, and the failure ends the process (SIGABRT). An empty shared library of the missing name,
which needs the real one, is as good: the loader finds it by its name and looks symbols up in what
it needs. It is written here byte by byte and loaded from memory, so that no file is made.

Source: System V ABI, "Object Files" and "Program Loading and Dynamic Linking"; glibc's dlopen,
which compares the wanted name with the DT_SONAME of what is loaded.
"""

import ctypes
import os
import platform
import struct
from types import ModuleType

from ..errors import UnsupportedError

_WANTED = "libtensorrt_rtx.so"
_PRESENT = "libtensorrt_rtx.so.1"
_SYMBOL = "getPluginRegistry"
_MACHINES = {"x86_64": 62, "aarch64": 183}
"""Values of `e_machine`."""

_HEADER_BYTES, _SEGMENT_BYTES, _SYMBOL_BYTES = 64, 56, 24
_LOAD, _DYNAMIC, _STACK = 1, 2, 0x6474E551
_READ_WRITE = 6


def ensure_plugin_library(trt: ModuleType) -> None:
    """Make parsing plugin nodes safe in this process; call it before the first one.

    Args:
        trt: `tensorrt_rtx` or `tensorrt`; the latter needs nothing.

    Raises:
        UnsupportedError: it cannot be made safe here; parsing would end the process.
    """
    if trt.__name__ != "tensorrt_rtx" or _is_found():
        return
    machine = _MACHINES.get(platform.machine())
    try:
        if machine is None:
            raise OSError(f"no shared library can be made for {platform.machine()}")
        _load_from_memory(make_alias(soname=_WANTED, needed=_PRESENT, machine=machine))
        problem = None if _is_found() else f"{_SYMBOL} is not in it"
    except (OSError, AttributeError) as error:  # memfd_create exists on Linux only
        problem = str(error)
    if problem is not None:
        raise UnsupportedError(
            f"TensorRT-RTX looks for {_WANTED} at the first plugin and there is none ({problem}); "
            f"build with --no-plugins, or link it to {_PRESENT} in a folder of LD_LIBRARY_PATH"
        )


def _is_found() -> bool:
    """Whether a library of that name is loaded and whole; none is searched for on disk."""
    try:
        return hasattr(ctypes.CDLL(_WANTED, mode=os.RTLD_NOLOAD | os.RTLD_LAZY), _SYMBOL)
    except OSError:
        return False


def _load_from_memory(library: bytes) -> None:
    """Load a library for good: ctypes never unloads.

    The descriptor stays open. The loader knows the library by this path, and would take whatever
    is opened under the same number later for it.
    """
    descriptor = os.memfd_create(_WANTED)
    os.write(descriptor, library)
    ctypes.CDLL(f"/proc/self/fd/{descriptor}")


def make_alias(*, soname: str, needed: str, machine: int) -> bytes:
    """Write a 64-bit little-endian ELF shared library without symbols that needs another one.

    Args:
        soname: its name.
        needed: name of the library that it needs.
        machine: `e_machine`, as in 62 for x86-64.
    """
    strings = b"\0" + soname.encode() + b"\0" + needed.encode() + b"\0"
    strings += b"\0" * (-len(strings) % 8)
    strings_at = _HEADER_BYTES + 3 * _SEGMENT_BYTES
    symbols_at = strings_at + len(strings)
    hash_at = symbols_at + _SYMBOL_BYTES
    table = struct.pack("<4I", 1, 1, 0, 0)  # one bucket, one symbol: the undefined one
    dynamic_at = hash_at + len(table)
    entries = (
        (1, len(soname) + 2),  # DT_NEEDED
        (14, 1),  # DT_SONAME
        (4, hash_at),  # DT_HASH
        (5, strings_at),  # DT_STRTAB
        (10, len(strings)),  # DT_STRSZ
        (6, symbols_at),  # DT_SYMTAB
        (11, _SYMBOL_BYTES),  # DT_SYMENT
        (0, 0),  # DT_NULL
    )
    dynamic = b"".join(struct.pack("<2Q", *entry) for entry in entries)
    size = dynamic_at + len(dynamic)
    # Type 3 is a shared object; there are three segments and no sections.
    counts = (_HEADER_BYTES, _SEGMENT_BYTES, 3, 64, 0, 0)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<2HI3QI6H", 3, machine, 1, 0, _HEADER_BYTES, 0, 0, *counts)
    segments = _segment(_LOAD, 0, size, 1 << 16) + _segment(_DYNAMIC, dynamic_at, len(dynamic), 8)
    segments += _segment(_STACK, 0, 0, 16)  # without it the loader wants an executable stack
    return header + segments + strings + bytes(_SYMBOL_BYTES) + table + dynamic


def _segment(kind: int, begin: int, size: int, align: int) -> bytes:
    return struct.pack("<2I6Q", kind, _READ_WRITE, begin, begin, begin, size, size, align)
