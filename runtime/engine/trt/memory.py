"""What lies in the device's memory for as long as the engine lives: weights, caches, buffers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ...artifact.folder import Artifact
from ...artifact.records import TYPE_BYTES, BoundWeight, CacheRecord
from ...limits import Limits
from ..gpu.memory import Memory


class Weights:
    """Pieces of weights files on the device, each once however many graphs read it."""

    def __init__(self, artifact: Artifact, memory: Memory) -> None:
        """Nothing is copied yet."""
        self._folder, self._memory = artifact.folder, memory
        self._addresses: dict[BoundWeight, int] = {}

    def addresses(self, weights: Mapping[str, BoundWeight]) -> dict[str, int]:
        """Copy what is not there yet, straight from the mapped files; give all addresses."""
        return {name: self._address(weight) for name, weight in weights.items()}

    def _address(self, weight: BoundWeight) -> int:
        if weight not in self._addresses:
            values = np.memmap(
                self._folder / weight.path,
                dtype=np.uint8,
                mode="r",
                offset=weight.offset,
                shape=(weight.length,),
            )
            address = self._memory.allocate(weight.length)
            self._memory.device.write(address, values)
            self._addresses[weight] = address
        return self._addresses[weight]


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    address: int
    slot_bytes: int
    token_bytes: int


class DeviceCache:
    """The latent cache: for each layer and tensor one buffer (slots, 1, max tokens, width)."""

    def __init__(
        self, layers: Iterable[str], record: CacheRecord, limits: Limits, memory: Memory
    ) -> None:
        """Reserve memory.

        Raises:
            CapacityError: the device has not that much.
        """
        self._device = memory.device
        self.tensors = tuple(record.tensors)
        """Names of a layer's tensors."""
        self._layers = {
            layer: {
                name: _make_tensor(TYPE_BYTES[one.dtype] * one.width, limits, memory)
                for name, one in record.tensors.items()
            }
            for layer in layers
        }

    def addresses(self, layer: str, first_slot: int) -> dict[str, int]:
        """Give where the buffers of a layer begin for a slot and those behind it."""
        tensors = self._layers[layer].items()
        return {name: one.address + first_slot * one.slot_bytes for name, one in tensors}

    def clear(self, slot: int) -> None:
        """Fill a slot with zeros: attention masks what is behind a text, but 0 x NaN is not 0."""
        for tensors in self._layers.values():
            for one in tensors.values():
                self._device.clear(one.address + slot * one.slot_bytes, one.slot_bytes)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another, in every layer."""
        for tensors in self._layers.values():
            for one in tensors.values():
                begin, end = (one.address + slot * one.slot_bytes for slot in (source, target))
                self._device.copy(begin, end, length * one.token_bytes)


def _make_tensor(token_bytes: int, limits: Limits, memory: Memory) -> _Tensor:
    slot_bytes = token_bytes * limits.max_tokens
    address = memory.allocate(slot_bytes * limits.max_slots)
    memory.device.clear(address, slot_bytes * limits.max_slots)
    return _Tensor(address=address, slot_bytes=slot_bytes, token_bytes=token_bytes)
