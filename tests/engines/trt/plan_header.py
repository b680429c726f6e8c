"""The first bytes of a TensorRT-RTX plan, as they were seen; NVIDIA documents none of this."""

import struct
from typing import NamedTuple

HEADER_BYTES = 64
SM_BITS = (75, 80, 86, 89, 120, 121)
"""SM of each bit of the target mask, from the lowest."""


class PlanHeader(NamedTuple):
    """What a plan says of itself."""

    size_bytes: int
    version: tuple[int, ...]
    """Of the TensorRT-RTX that built it."""
    sms: tuple[int, ...]


def read_header(plan: bytes) -> PlanHeader:
    assert plan[:4] == b"vtrt", plan[:4]
    assert plan[28:32] == b"vtrt", plan[28:32]
    (size_bytes,) = struct.unpack_from("<Q", plan, 16)
    (mask,) = struct.unpack_from("<I", plan, 32)
    sms = tuple(sm for bit, sm in enumerate(SM_BITS) if mask >> bit & 1)
    return PlanHeader(size_bytes, tuple(plan[24:28]), sms)
