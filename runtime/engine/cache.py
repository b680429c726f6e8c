"""The latent KV cache on the host: one buffer per layer, one row per slot.

Layout of a layer's buffer: (slots, 1, max tokens, R + rope). Memory is reserved at once and becomes
real as tokens are written. Does not know: lengths of the sequences (callers do), attention.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ..limits import Limits

Buffer = NDArray[np.float32]


class LatentCache:
    """Buffers of all layers, and the windows that graphs read and write in place."""

    def __init__(self, num_layers: int, width: int, limits: Limits) -> None:
        """Reserve memory.

        Args:
            num_layers: decoder layers.
            width: numbers per token and layer.
            limits: slots and their capacity.
        """
        shape = (limits.max_slots, 1, limits.max_tokens, width)
        self._layers = [np.zeros(shape, dtype=np.float32) for _ in range(num_layers)]

    @contextmanager
    def window(self, layer: int, slots: Sequence[int], first: int, last: int) -> Iterator[Buffer]:
        """Give a contiguous (B, 1, last, width) view of some slots to write into.

        One slot is a view of the buffer itself. Several are copied together, and the tokens from
        `first` on are copied back afterwards: graphs need one block of memory.

            slot 0   [ old old old new | free      ]      window of slots 0 and 2, last = 4:
            slot 1   [ idle            | free      ]         old old old new
            slot 2   [ old old new new | free      ]         old old new new

        Args:
            layer: index of the layer.
            slots: which sequences, in the order of the batch.
            first: no sequence of the batch is shorter than this.
            last: tokens that the longest sequence has after this step.
        """
        buffer = self._layers[layer]
        if len(slots) == 1:
            yield buffer[slots[0] : slots[0] + 1, :, :last]
            return
        rows = list(slots)
        copied = np.ascontiguousarray(buffer[rows, :, :last])
        yield copied
        buffer[rows, :, first:last] = copied[:, :, first:]

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another, in every layer."""
        for buffer in self._layers:
            buffer[target, :, :length] = buffer[source, :, :length]
