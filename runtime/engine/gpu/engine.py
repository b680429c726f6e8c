"""What engines on a GPU have in common: how a step is run, looked at, and what is given back."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ...artifact.folder import Artifact
from ...artifact.records import TargetRecord
from ...config import KimiVLConfig
from ...errors import NumericError
from ...limits import Limits
from ...prompt.patches import PatchedImage
from ..checks import check_finite, check_grid
from ..embedding import EmbeddingTable
from ..protocol import FloatArray, IntArray, NonFiniteRowsError
from ..vision_inputs import vision_inputs
from .device import Device
from .memory import Memory
from .pieces import Piece
from .piecewise import HeadRows, SlotMemory, Wanted, run_in_pieces


class PieceDecoder(Protocol):
    """All layers and the head on a device."""

    def run(
        self,
        first_slot: int,
        hidden: FloatArray,
        lengths: IntArray,
        rows: IntArray,
        wanted: Wanted,
    ) -> HeadRows:
        """Append tokens to some slots.

        Args:
            first_slot: of B neighbours.
            hidden: (B, S, C), at most `prefill_chunk` tokens each.
            lengths: tokens that each slot has before, (B,).
            rows: which of the flattened (B * S) tokens the head takes, (N,).
            wanted: logits, or their best ids.

        Returns:
            What is wanted of these rows.
        """


class GpuEngine(ABC):
    """The engine protocol, but for what runs the graphs: that is for those who inherit."""

    _cache: SlotMemory
    _decoder: PieceDecoder

    def __init__(self, artifact: Artifact, record: TargetRecord, device: Device) -> None:
        """Begin with no memory.

        Args:
            artifact: opened, hence checked.
            record: of the target.
            device: where everything will be.
        """
        self._device, self._limits = device, record.limits
        self._table = EmbeddingTable(artifact)
        self._config = KimiVLConfig.load(artifact.model_folder / "config.json")
        self._memory = Memory(device)
        self._freed = weakref.finalize(self, self._memory.free_all)
        self._freed.atexit = False  # the driver does it for a process that ends

    @property
    def limits(self) -> Limits:
        """The sizes this engine was built for."""
        return self._limits

    def encode(self, image: PatchedImage) -> FloatArray:
        """Turn one image into its rows of the prompt, (M, C)."""
        check_grid(image.grid, self._limits)
        inputs = vision_inputs(image, self._config.vision)
        with self._device.active():  # what another thread records fails where memory is taken
            features = self._features(inputs, image.num_tokens)
        check_finite(features, "the vision encoder")
        return features

    @abstractmethod
    def _features(self, inputs: Mapping[str, FloatArray], num_tokens: int) -> FloatArray:
        """Run vision encoder and projector.

        Args:
            inputs: of the encoder, by name.
            num_tokens: M.

        Returns:
            (M, C).
        """

    def embed(self, ids: IntArray) -> FloatArray:
        """Look up token ids (S,) in the embedding table, (S, C)."""
        return self._table.rows(ids)

    def step(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> FloatArray:
        """Append S tokens to each of B slots and return the logits of chosen tokens (N, V)."""
        found = np.empty((len(rows), self._table.vocab_size), dtype=np.float32)
        self._run(slots, hidden, lengths, rows, found, "logits")
        return found

    def step_greedy(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> IntArray:
        """Append S tokens to each of B slots and return the best next ids of chosen ones (N,)."""
        found = np.empty(len(rows), dtype=np.int64)
        self._run(slots, hidden, lengths, rows, found, "best")
        return found

    def _run(
        self,
        slots: Sequence[int],
        hidden: FloatArray,
        lengths: IntArray,
        rows: IntArray,
        found: FloatArray | IntArray,
        wanted: Wanted,
    ) -> None:
        if not len(rows):
            self._run_unread(slots, hidden, lengths)
            return

        def run(piece: Piece, given: FloatArray, done: IntArray) -> HeadRows:
            return self._decoder.run(piece.first_slot, given, done, piece.rows, wanted)

        with self._device.active():
            run_in_pieces(
                slots,
                hidden,
                lengths,
                rows,
                found=found,
                run=run,
                cache=self._cache,
                limits=self._limits,
            )

    def _run_unread(self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray) -> None:
        """Append tokens of which nothing is wanted, and look at the last one of each slot.

        A prompt that went wrong in the middle ends there: what it left would outlive it, were it
        cancelled before its last token.

        Raises:
            NumericError: it is not finite, so that no text of that slot can go on.
        """
        num_new = hidden.shape[1]
        last = np.arange(1, len(slots) + 1) * num_new - 1
        found = np.empty(len(slots), dtype=np.int64)
        try:
            self._run(slots, hidden, lengths, last, found, "best")
        except NonFiniteRowsError as error:
            raise NumericError(str(error)) from error

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` cached tokens of one slot to another."""
        with self._device.active():
            self._cache.copy_prefix(source, target, length)

    def close(self) -> None:
        """Give the device's memory back; the engine runs nothing any more."""
        if self._freed.alive:
            self._unload()
            del self._decoder
            self._freed()

    @abstractmethod
    def _unload(self) -> None:
        """Drop what is loaded, so that it gives back what it holds itself."""
