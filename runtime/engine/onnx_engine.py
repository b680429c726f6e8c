"""The engine protocol on ONNX Runtime's CPU provider: one session per graph, cache in place."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime as ort

from .. import names
from ..artifact.folder import Artifact
from ..config import KimiVLConfig
from ..limits import Limits
from ..prompt.patches import PatchedImage
from .cache import LatentCache
from .checks import check_finite, check_grid, check_step
from .contract import check_graphs
from .embedding import EmbeddingTable
from .onnx_session import open_session
from .protocol import FloatArray, IntArray
from .vision_inputs import vision_inputs

Observer = Callable[[int, dict[str, np.ndarray]], None]
"""Told the router's decisions of a layer after each step: layer number, tap name to values."""

_TAPS = (names.TAP_EXPERTS, names.TAP_SCORES, names.TAP_MARGIN)


class OnnxEngine:
    """Runs an artifact's graphs for one target of ONNX Runtime."""

    def __init__(
        self,
        artifact: Artifact,
        target: str = "cpu",
        *,
        num_threads: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Load all graphs.

        Args:
            artifact: opened, hence checked.
            target: which of its targets.
            num_threads: cores to use; all that this process may, if left out.
            observer: told the taps of an artifact that was exported with them.
        """
        record = artifact.target(target)
        self._limits = record.limits
        self._observer = observer
        self._layer_numbers = artifact.manifest.layers
        self._table = EmbeddingTable(artifact)
        config = KimiVLConfig.load(artifact.model_folder / "config.json")
        self._vision_config = config.vision
        sessions = {
            name: open_session(artifact, path, num_threads=num_threads)
            for name, path in record.graphs.items()
        }
        check_graphs(artifact, record, config, sessions)
        self._vision = sessions[names.VISION]
        self._projector = sessions[names.PROJECTOR]
        self._head = sessions[names.HEAD]
        self._layers = [sessions[names.layer_name(layer)] for layer in self._layer_numbers]
        self._cache = LatentCache(len(self._layers), record.cache, record.limits)

    @property
    def limits(self) -> Limits:
        """The sizes this engine was built for."""
        return self._limits

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
        check_step(slots, hidden, lengths, self._limits)
        num_new = hidden.shape[1]
        state = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(hidden))
        counts = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(lengths))
        for layer, session in enumerate(self._layers):
            with self._cache.window(layer, slots, lengths.tolist(), num_new) as window:
                cache = {
                    name: ort.OrtValue.ortvalue_from_numpy(values)
                    for name, values in window.items()
                }
                state = self._run_layer(layer, session, state, cache, counts)
        if rows.size == 0:
            return np.zeros((0, self._table.vocab_size), dtype=np.float32)
        inputs = {names.HIDDEN: state, names.ROWS: ort.OrtValue.ortvalue_from_numpy(rows)}
        outputs = self._head.run_with_ort_values([names.LOGITS], inputs)
        logits: FloatArray = outputs[0].numpy()
        check_finite(logits, "the decoder")
        return logits

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` cached tokens of one slot to another."""
        self._cache.copy_prefix(source, target, length)

    def _run_layer(
        self,
        layer: int,
        session: ort.InferenceSession,
        state: ort.OrtValue,
        cache: Mapping[str, ort.OrtValue],
        lengths: ort.OrtValue,
    ) -> ort.OrtValue:
        binding = session.io_binding()
        binding.bind_ortvalue_input(names.HIDDEN, state)
        for name, values in cache.items():
            binding.bind_ortvalue_input(name, values)
        binding.bind_ortvalue_input(names.LENGTHS, lengths)
        binding.bind_output(names.HIDDEN_OUT)
        for name, values in cache.items():
            binding.bind_ortvalue_output(names.output_of(name), values)  # written in place
        num_plain = 1 + len(cache)
        has_taps = self._observer is not None and len(session.get_outputs()) > num_plain
        for tap in _TAPS if has_taps else ():
            binding.bind_output(tap)
        session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        if self._observer is not None and has_taps:
            tapped = zip(_TAPS, outputs[num_plain:], strict=True)
            taps = {name: value.numpy() for name, value in tapped}
            self._observer(self._layer_numbers[layer], taps)
        return outputs[0]
