"""The latent KV cache on the host: some buffers per layer, one row per slot.

Layout of a buffer: (slots, 1, max tokens, width). Memory is reserved at once and becomes real as
tokens are written. Does not know: lengths of the sequences (callers do), attention, what the
numbers mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...artifact.records import CacheRecord
from ...errors import CapacityError
from ...limits import Limits

Window = Mapping[str, NDArray[Any]]
"""Cache tensors of one layer by name, (B, 1, T, width) each."""


class LatentCache:
    """Buffers of all layers, and the windows that graphs read and write in place."""

    def __init__(self, num_layers: int, record: CacheRecord, limits: Limits) -> None:
        """Reserve memory.

        Args:
            num_layers: decoder layers.
            record: tensors of a layer; their types are numpy's.
            limits: slots and their capacity.

        Raises:
            CapacityError: this machine has not that much memory.
        """
        shape = (limits.max_slots, 1, limits.max_tokens)
        try:
            self._layers = [
                {
                    name: np.zeros((*shape, one.width), dtype=one.dtype)
                    for name, one in record.tensors.items()
                }
                for _ in range(num_layers)
            ]
        except MemoryError as error:
            size_bytes = num_layers * limits.max_slots * limits.max_tokens * record.token_bytes
            raise CapacityError(
                f"a cache of {limits.max_slots} x {limits.max_tokens} tokens needs "
                f"{size_bytes / 1e9:.1f} GB, which this machine cannot give; build with a smaller "
                "--max-kv-cache-capacity or --max-batch-size"
            ) from error

    @contextmanager
    def window(
        self, layer: int, slots: Sequence[int], lengths: Sequence[int], num_new: int
    ) -> Iterator[Window]:
        """Give contiguous (B, 1, T, width) views of some slots to write into.

        T is the longest sequence after this step. One slot is a view of the buffer itself. Several
        are copied together, since graphs need one block of memory, and what was written is copied
        back. Behind a shorter sequence the copy is zero: what an earlier text left there is masked
        in attention, but a NaN among it would not be.

            slot 0   [ a a a . | free ]      window of slots 0 and 2, one new token each (*):
            slot 1   [ idle    | free ]         a a a *
            slot 2   [ c . x y | free ]         c * 0 0

        Args:
            layer: index of the layer.
            slots: which sequences, in the order of the batch.
            lengths: tokens that each of them has before this step.
            num_new: tokens that this step adds to each.
        """
        buffers = self._layers[layer]
        last = max(lengths) + num_new
        if len(slots) == 1:
            only = slice(slots[0], slots[0] + 1)
            yield {name: buffer[only, :, :last] for name, buffer in buffers.items()}
            return
        copied = {name: buffer[list(slots), :, :last] for name, buffer in buffers.items()}
        for values in copied.values():
            for row, length in enumerate(lengths):
                values[row, :, length:] = 0
        yield copied
        for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            written = slice(length, length + num_new)
            for name, buffer in buffers.items():
                buffer[slot, :, written] = copied[name][row, :, written]

    def whole(self, slots: slice) -> list[Window]:
        """Give views of whole slots that are neighbours, for every layer."""
        return [
            {name: buffer[slots] for name, buffer in buffers.items()} for buffers in self._layers
        ]

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another, in every layer."""
        for buffers in self._layers:
            for buffer in buffers.values():
                buffer[target, :, :length] = buffer[source, :, :length]
