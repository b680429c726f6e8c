"""The latent cache on a device, laid out as narrow as what is in it allows.

A step of several slots binds one block of memory, (B, 1, T, width), and attention reads all of
it. With the capacity for T, a batch of short texts would read a hundred times what is there. So
slots lie closer together while they are short, and are moved apart when one of them grows: T is a
power of two, so that every token is moved about once.

    4 slots of 2 tokens    [ a . | b b | c . | . . |          free           ]
    slot 1 grows to 3      [ a . . . | b b b . | c . . . | . . . . |  free   ]
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...artifact.records import TYPE_BYTES, CacheRecord
from ...limits import Limits
from ..gpu.memory import Memory

LEAST_ROWS = 256
"""Of a slot; a step over fewer would be no faster."""


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """Memory of all slots for one tensor of one layer."""

    address: int
    token_bytes: int


class SlotCache:
    """Buffers of all layers, and where each slot begins in them."""

    def __init__(
        self,
        layers: Iterable[str],
        record: CacheRecord,
        limits: Limits,
        memory: Memory,
        *,
        least_rows: int = LEAST_ROWS,
    ) -> None:
        """Reserve memory for all slots at their capacity.

        Args:
            layers: names of the layers.
            record: tensors of a layer.
            limits: slots and their capacity.
            memory: of the device, to take from.
            least_rows: of a slot, however short its text is.

        Raises:
            CapacityError: the device has not that much.
        """
        self._device, self._capacity = memory.device, limits.max_tokens
        self._used = [0] * limits.max_slots
        self._least_rows = least_rows
        self._rows = self._rows_for(0)
        self._layers: dict[str, dict[str, _Tensor]] = {}
        for layer in layers:
            self._layers[layer] = {}
            for name, one in record.tensors.items():
                token_bytes = TYPE_BYTES[one.dtype] * one.width
                size = token_bytes * limits.max_tokens * limits.max_slots
                self._layers[layer][name] = _Tensor(
                    address=memory.allocate(size), token_bytes=token_bytes
                )
                self._device.clear(self._layers[layer][name].address, size)

    @property
    def rows(self) -> int:
        """Tokens that each slot has room for as slots lie now."""
        return self._rows

    def fit(self, first_slot: int, lengths: Sequence[int]) -> None:
        """Make room for what some neighbours will hold; what they held behind that is forgotten."""
        self._used[first_slot : first_slot + len(lengths)] = lengths
        rows = self._rows_for(max(self._used))
        if rows != self._rows:
            self._move_slots(rows)

    def addresses(self, layer: str, first_slot: int) -> Mapping[str, int]:
        """Give where the tensors of a layer begin for a slot and those behind it."""
        first_row = first_slot * self._rows
        tensors = self._layers[layer].items()
        return {name: one.address + first_row * one.token_bytes for name, one in tensors}

    def clear(self, slot: int) -> None:
        """Fill a slot with zeros: attention masks what is behind a text, but 0 x NaN is not 0."""
        self._used[slot] = 0
        for one in self._tensors:
            slot_bytes = self._rows * one.token_bytes
            self._device.clear(one.address + slot * slot_bytes, slot_bytes)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another, in every layer."""
        assert length <= self._rows, f"{length} tokens of slots of {self._rows}"
        self._used[target] = length
        for one in self._tensors:
            begin, end = (
                one.address + slot * self._rows * one.token_bytes for slot in (source, target)
            )
            self._device.copy(begin, end, length * one.token_bytes)

    @property
    def _tensors(self) -> list[_Tensor]:
        return [one for tensors in self._layers.values() for one in tensors.values()]

    def _rows_for(self, longest: int) -> int:
        rows = self._least_rows
        while rows < longest:
            rows *= 2
        return min(rows, self._capacity)

    def _move_slots(self, rows: int) -> None:
        """Give every slot other room; in an order in which none is written over.

        What is behind a text was another's, perhaps one that ended in NaN: it is cleared.
        """
        order = list(range(1, len(self._used)))  # the first one stays where it is
        if rows > self._rows:
            order.reverse()
        for one in self._tensors:
            for slot in order:
                begin, end = (
                    one.address + slot * size * one.token_bytes for size in (self._rows, rows)
                )
                self._move(begin, end, self._used[slot] * one.token_bytes)
            for slot, used in enumerate(self._used):
                if used < rows:
                    behind = one.address + (slot * rows + used) * one.token_bytes
                    self._device.clear(behind, (rows - used) * one.token_bytes)
        self._rows = rows

    def _move(self, begin: int, end: int, size_bytes: int) -> None:
        """Copy within the device, piece by piece where source and target overlap."""
        step = abs(end - begin)
        starts = list(range(0, size_bytes, step))
        for start in reversed(starts) if end > begin else starts:
            self._device.copy(begin + start, end + start, min(step, size_bytes - start))
