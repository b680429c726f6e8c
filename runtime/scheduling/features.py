"""Remembers what the encoder made of images, the most lately used first to stay.

It belongs to one engine, so that the pixels alone name an entry. Rows are kept as the engine gave
them and must not be written to.
"""

from collections import OrderedDict

from ..engine.protocol import FloatArray


class FeatureCache:
    """Rows (M, C) of images by their key, within a budget."""

    def __init__(self, max_bytes: int) -> None:
        """Start empty; what is larger than `max_bytes` alone is never kept."""
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, FloatArray] = OrderedDict()
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """What is kept now."""
        return self._size_bytes

    def find(self, key: bytes) -> FloatArray | None:
        """Give the rows of an image, if they are kept."""
        features = self._entries.get(key)
        if features is not None:
            self._entries.move_to_end(key)
        return features

    def keep(self, key: bytes, features: FloatArray) -> None:
        """Keep the rows of an image; those that were not used for longest make room."""
        if features.nbytes > self._max_bytes or key in self._entries:
            return
        self._entries[key] = features
        self._size_bytes += features.nbytes
        while self._size_bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._size_bytes -= dropped.nbytes
