"""The engine protocol on ONNX Runtime's CUDA provider: only ids cross the border, or logits."""

import weakref
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from ... import names
from ...artifact.folder import Artifact
from ...config import KimiVLConfig
from ...cuda import Cuda
from ...errors import ArtifactError, NumericError
from ...limits import Limits
from ...prompt.patches import PatchedImage
from ..checks import check_finite, check_grid
from ..embedding import EmbeddingTable
from ..piecewise import HeadRows, run_in_pieces
from ..protocol import FloatArray, IntArray, NonFiniteRowsError
from ..trt.device import CudaDevice, Device
from ..trt.pieces import Piece
from ..vision_inputs import vision_inputs
from .cache import SlotCache
from .contract import check_graphs
from .decoder import Decoder, Wanted
from .memory import Memory
from .provider import CUDA, Provider, named_error


class CudaEngine:
    """Runs an artifact's graphs for target `cuda`."""

    def __init__(
        self,
        artifact: Artifact,
        target: str = "cuda",
        *,
        provider: Provider = CUDA,
        device: Device | None = None,
    ) -> None:
        """Load all graphs, reserve the cache and the memory of the largest steps.

        Args:
            artifact: opened, hence checked.
            target: which of its targets.
            provider: what runs the graphs.
            device: where their tensors are; the first GPU, if left out.

        Raises:
            UnsupportedError: ONNX Runtime has no such provider, or there is no GPU.
            CapacityError: the device has too little memory.
            ArtifactError: the target has no graph of the decoder, or graphs of another model.
        """
        record = artifact.target(target)
        if record.decoder is None:
            raise ArtifactError(f"{artifact.folder}: target {target} has no graph of the decoder")
        provider.check()
        self._device = device or CudaDevice(Cuda.load())
        self._provider, self._limits = provider, record.limits
        self._table = EmbeddingTable(artifact)
        config = KimiVLConfig.load(artifact.model_folder / "config.json")
        self._vision_config = config.vision
        layers = [names.layer_name(layer) for layer in artifact.manifest.layers]
        memory = Memory(self._device)
        self._freed = weakref.finalize(self, memory.free)
        self._freed.atexit = False  # the driver does it for a process that ends
        # The cache before the weights: what is too much is refused at once.
        self._cache = SlotCache(layers, record.cache, record.limits, memory)
        sessions = {
            names.VISION: provider.open(artifact, record.graphs[names.VISION]),
            names.PROJECTOR: provider.open(artifact, record.graphs[names.PROJECTOR]),
            names.DECODER: provider.open(artifact, record.decoder, records=True),
        }
        check_graphs(artifact, record, config, sessions)
        self._vision, self._projector = sessions[names.VISION], sessions[names.PROJECTOR]
        self._decoder = Decoder(
            sessions[names.DECODER],
            self._cache,
            layers,
            limits=record.limits,
            provider=provider,
            memory=memory,
        )
        with self._device.active():
            self._decoder.reserve()

    @property
    def limits(self) -> Limits:
        """The sizes this engine was built for."""
        return self._limits

    def encode(self, image: PatchedImage) -> FloatArray:
        """Turn one image into its rows of the prompt, (M, C)."""
        check_grid(image.grid, self._limits)
        first = self._vision.io_binding()
        for name, values in vision_inputs(image, self._vision_config).items():
            first.bind_cpu_input(name, np.ascontiguousarray(values))
        (merged,) = _outputs(
            self._vision,
            first,
            names.MERGED,
            self._provider.device_type,
            where="vision encoder",
        )
        second = self._projector.io_binding()
        second.bind_ortvalue_input(names.MERGED, merged)
        (value,) = _outputs(self._projector, second, names.FEATURES, "cpu", where="projector")
        features: FloatArray = value.numpy()
        check_finite(features, "the vision encoder")
        return features

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
            del self._vision, self._projector, self._decoder
            self._freed()


def _outputs(
    session: ort.InferenceSession,
    binding: ort.IOBinding,
    name: str,
    device_type: str,
    *,
    where: str,
) -> list[ort.OrtValue]:
    """Run a session and give what it makes, where it is wanted."""
    binding.bind_output(name, device_type)
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # the bindings raise many types without a common base
        raise named_error(error, f"an image in the {where}") from error
    found: list[ort.OrtValue] = binding.get_outputs()
    return found
