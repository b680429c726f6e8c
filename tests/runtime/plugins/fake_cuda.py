"""A CUDA driver library that only writes down what it is asked, and the launch tests give it."""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from runtime.plugins.launch import Cubin, Launch, Output, Size, Variant

Argument = Any  # a ctypes value or array


class Reference(Protocol):
    """What `ctypes.byref` gives."""

    _obj: Any


class Launched(NamedTuple):
    function: int
    grid: tuple[int, int, int]
    threads: tuple[int, int, int]
    shared_bytes: int
    stream: int
    parameters: tuple[bytes, ...]


class FakeCuda:
    """One device, one context that is current."""

    def __init__(self, sm: int, parameter_sizes: tuple[int, ...] = ()) -> None:
        self.sm = sm
        self.context = 0xC0
        self.parameter_sizes = parameter_sizes
        self.failing = ""
        self.codes: list[bytes] = []  # each module's code, up to its first zero byte
        self.entries: list[str] = []
        self.shared: dict[int, int] = {}
        self.launches: list[Launched] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        raise AttributeError(f"the fake driver has no {name}")

    def cuCtxGetDevice(self, device: Reference) -> int:
        device._obj.value = 3
        return 0

    def cuCtxGetCurrent(self, context: Reference) -> int:
        context._obj.value = self.context
        return 0

    def cuDeviceGetAttribute(self, value: Reference, attribute: int, device: ctypes.c_int) -> int:
        assert device.value == 3
        value._obj.value = {75: self.sm // 10, 76: self.sm % 10}[attribute]
        return 0

    def cuModuleLoadData(self, module: Reference, code: ctypes.c_char_p) -> int:
        if self.failing == "cuModuleLoadData":
            return 218
        self.codes.append(code.value or b"")
        module._obj.value = 0x1000 + len(self.codes)
        return 0

    def cuModuleGetFunction(
        self, function: Reference, module: ctypes.c_void_p, entry: ctypes.c_char_p
    ) -> int:
        self.entries.append((entry.value or b"").decode())
        function._obj.value = (module.value or 0) + 0x1000
        return 0

    def cuFuncSetAttribute(
        self, function: ctypes.c_void_p, attribute: ctypes.c_int, value: ctypes.c_int
    ) -> int:
        assert attribute.value == 8
        self.shared[function.value or 0] = value.value
        return 0

    def cuLaunchKernel(self, *values: Argument) -> int:
        function, *sizes, shared, stream, parameters, extra = values
        assert extra.value is None
        numbers = [size.value for size in sizes]
        addresses = [address for address in parameters if address is not None]
        self.launches.append(
            Launched(
                function.value,
                (numbers[0], numbers[1], numbers[2]),
                (numbers[3], numbers[4], numbers[5]),
                shared.value,
                stream.value,
                tuple(
                    ctypes.string_at(address, size)
                    for address, size in zip(addresses, self.parameter_sizes, strict=True)
                ),
            )
        )
        return 0

    def cuGetErrorString(self, status: int, text: Reference) -> int:
        text._obj.value = b"a PTX JIT compilation failed"
        return 0


def make_launch(sms: tuple[int, ...] = (89,), *, shared_bytes: int = 1024) -> Launch:
    """Tiles of 16 pairs below 40 tokens, of 64 from there; E = 8, K = 3."""
    variants = (("few", 0, 16, 5), ("many", 40, 64, 2))
    return Launch(
        op="GroupedUp",
        inputs=("HALF", "INT64", "INT32", "INT32", "INT8", "HALF"),
        outputs=(Output(dtype="HALF", shape=(Size(0, 1), Size(3, 0), Size(70, 0))),),
        arguments=("input 0", "input 4", "output 0", "tokens", "null", "null"),
        rows="tiles",
        num_experts=8,
        num_chosen=3,
        variants=tuple(
            Variant(
                min_tokens=min_tokens,
                block_rows=block_rows,
                columns=columns,
                cubins=tuple(
                    Cubin(
                        sm=sm,
                        entry=f"{name}_{sm}",
                        num_warps=4,
                        shared_bytes=shared_bytes,
                        code=f"code of {name} {sm}\0\0".encode(),
                    )
                    for sm in sms
                ),
            )
            for name, min_tokens, block_rows, columns in variants
        ),
    )
