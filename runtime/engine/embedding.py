"""The embedding table: rows read from the mapped file, so that the table costs no memory."""

import numpy as np

from ..artifact.folder import Artifact
from ..errors import InputError
from .protocol import FloatArray, IntArray


class EmbeddingTable:
    """Token ids to hidden states, widened to float32."""

    def __init__(self, artifact: Artifact) -> None:
        """Map the table of an artifact."""
        record = artifact.manifest.embedding
        self._is_bfloat16 = record.dtype == "bfloat16"
        stored = np.dtype(np.uint16 if self._is_bfloat16 else record.dtype)
        path = artifact.folder / record.path
        self._table = np.memmap(path, dtype=stored, mode="r", shape=record.shape)
        self._scales = None
        if record.scales is not None:
            self._scales = np.fromfile(artifact.folder / record.scales, dtype=np.float32)

    @property
    def vocab_size(self) -> int:
        """Rows of the table."""
        return int(self._table.shape[0])

    def rows(self, ids: IntArray) -> FloatArray:
        """Return the rows of ids (S,) as (S, C).

        Raises:
            InputError: an id is outside the vocabulary.
        """
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise InputError(
                f"token id {outside[0]} is outside the vocabulary of {self.vocab_size}"
            )
        stored = np.asarray(self._table[ids])
        if self._is_bfloat16:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        wide = stored.astype(np.float32)
        return wide if self._scales is None else wide * self._scales[ids, None]
