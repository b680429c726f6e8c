"""The engine protocol on ONNX Runtime's CPU provider: one session per graph, cache in place."""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from ... import names
from ...artifact.folder import Artifact
from ...config import KimiVLConfig
from ...cores import thread_count
from ...limits import Limits
from ...ops.library import configure, find_library
from ...prompt.patches import PatchedImage
from ..checks import check_finite, check_grid, check_rows, check_step, finite_rows
from ..embedding import EmbeddingTable
from ..onnx_session import open_session
from ..protocol import FloatArray, IntArray
from ..vision_inputs import vision_inputs
from .cache import LatentCache
from .contract import check_graphs
from .layers import CpuLayers, Observer
from .weights_place import WeightsPlace, should_pack

_WHERE = "the decoder"


class CpuEngine:
    """Runs an artifact's graphs for one target of ONNX Runtime."""

    def __init__(
        self,
        artifact: Artifact,
        target: str = "cpu",
        *,
        num_threads: int | None = None,
        weights: WeightsPlace = "auto",
        observer: Observer | None = None,
    ) -> None:
        """Load all graphs.

        Args:
            artifact: opened, hence checked.
            target: which of its targets.
            num_threads: cores to use; all that this process may, if left out.
            weights: whether kernels of the library of custom ops copy theirs.
            observer: told the taps of an artifact that was exported with them.
        """
        record = artifact.target(target)
        self._limits = record.limits
        self._table = EmbeddingTable(artifact)
        config = KimiVLConfig.load(artifact.model_folder / "config.json")
        self._vision_config = config.vision
        library = find_library()
        if library is not None:
            configure(
                library,
                num_threads=thread_count(num_threads),
                pack_weights=should_pack(artifact, target, weights),
            )
        sessions = {
            name: open_session(artifact, path, num_threads=num_threads, ops_library=library)
            for name, path in record.graphs.items()
        }
        check_graphs(artifact, record, config, sessions)
        self._vision = sessions[names.VISION]
        self._projector = sessions[names.PROJECTOR]
        self._head = sessions[names.HEAD]
        layers = {number: sessions[names.layer_name(number)] for number in artifact.manifest.layers}
        self._cache = LatentCache(len(layers), record.cache, record.limits)
        self._layers = CpuLayers(
            layers,
            self._cache,
            read_whole_slots=library is not None
            and names.READS_LENGTHS in record.passes
            and names.CACHE_SCALES in record.cache.tensors,  # the kernel is of an int8 cache
            observer=observer,
        )

    @property
    def limits(self) -> Limits:
        """The sizes this engine was built for."""
        return self._limits

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return self._table.vocab_size

    def encode(self, image: PatchedImage) -> FloatArray:
        """Turn one image into its rows of the prompt, (M, C)."""
        check_grid(image.grid, self._limits)
        merged = self._vision.run(None, vision_inputs(image, self._vision_config))[0]
        features: FloatArray = self._projector.run(None, {names.MERGED: merged})[0]
        check_finite(features, "the vision encoder")
        return features

    def embed(self, ids: IntArray) -> FloatArray:
        """Look up token ids (S,) in the embedding table, (S, C)."""
        return self._table.rows(ids)

    def step(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> FloatArray:
        """Append S tokens to each of B slots and return the logits of chosen tokens (N, V)."""
        logits = self._logits(slots, hidden, lengths, rows)
        check_rows(logits, finite_rows(logits), _WHERE)
        return logits

    def _logits(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> FloatArray:
        check_step(slots, hidden, lengths, self._limits)
        state = self._layers.run(slots, hidden, lengths)
        if rows.size == 0:
            return np.zeros((0, self._table.vocab_size), dtype=np.float32)
        inputs = {names.HIDDEN: state, names.ROWS: ort.OrtValue.ortvalue_from_numpy(rows)}
        outputs = self._head.run_with_ort_values([names.LOGITS], inputs)
        logits: FloatArray = outputs[0].numpy()
        return logits

    def step_greedy(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> IntArray:
        """Append S tokens to each of B slots and return the best next ids of chosen ones (N,)."""
        logits = self._logits(slots, hidden, lengths, rows)
        best: IntArray = logits.argmax(axis=1)  # the first of ties
        check_rows(best, finite_rows(logits), _WHERE)
        return best

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` cached tokens of one slot to another."""
        self._cache.copy_prefix(source, target, length)
