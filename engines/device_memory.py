"""What lies in the memory of a GPU while requests are answered."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """What lies in the memory of a GPU while requests are answered."""

    weights_bytes: int
    """As they are stored; the embedding table stays with the host."""
    cache_bytes: int
    scratch_bytes: int
    """One piece of memory that all graphs share."""
    scratch_of: str
    """The graph that needs the most of it."""
    buffers_bytes: int
    """What goes between graphs, and between host and device."""
    code_bytes: int
    """Plans of TensorRT without weights, of which kernels are a part; none of ONNX Runtime."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        parts = (self.weights_bytes, self.cache_bytes, self.scratch_bytes, self.buffers_bytes)
        return sum(parts) + self.code_bytes
