"""Engines of target `cuda`: ONNX Runtime's CUDA provider; only ids cross the border, or logits."""

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort

from ... import names
from ...artifact.folder import Artifact
from ...cuda import Cuda
from ...errors import ArtifactError
from ..gpu.device import CudaDevice, Device
from ..gpu.engine import GpuEngine
from ..protocol import FloatArray
from .cache import SlotCache
from .contract import check_graphs
from .decoder import Decoder
from .provider import CUDA, Provider, named_error


class CudaEngine(GpuEngine):
    """Runs an artifact's graphs for target `cuda`."""

    _cache: SlotCache
    _decoder: Decoder

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
        super().__init__(artifact, record, device or CudaDevice(Cuda.load()))
        self._provider = provider
        layers = [names.layer_name(layer) for layer in artifact.manifest.layers]
        # The cache before the weights: what is too much is refused at once.
        self._cache = SlotCache(layers, record.cache, record.limits, self._memory)
        sessions = {
            names.VISION: provider.open(artifact, record.graphs[names.VISION]),
            names.PROJECTOR: provider.open(artifact, record.graphs[names.PROJECTOR]),
            names.DECODER: provider.open(artifact, record.decoder, records=True),
        }
        check_graphs(artifact, record, self._config, sessions)
        self._vision, self._projector = sessions[names.VISION], sessions[names.PROJECTOR]
        self._decoder = Decoder(
            sessions[names.DECODER],
            self._cache,
            layers,
            limits=record.limits,
            provider=provider,
            memory=self._memory,
        )
        with self._device.active():
            self._decoder.reserve()

    def _features(self, inputs: Mapping[str, FloatArray], num_tokens: int) -> FloatArray:
        first = self._vision.io_binding()
        for name, values in inputs.items():
            first.bind_cpu_input(name, np.ascontiguousarray(values))
        kind = self._provider.device_type
        merged = _output(self._vision, first, names.MERGED, kind, where="vision encoder")
        second = self._projector.io_binding()
        second.bind_ortvalue_input(names.MERGED, merged)
        value = _output(self._projector, second, names.FEATURES, "cpu", where="projector")
        features: FloatArray = value.numpy()
        return features

    def _unload(self) -> None:
        del self._vision, self._projector


def _output(
    session: ort.InferenceSession,
    binding: ort.IOBinding,
    name: str,
    device_type: str,
    *,
    where: str,
) -> ort.OrtValue:
    """Run a session and give its one output, where it is wanted."""
    binding.bind_output(name, device_type)
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # the bindings raise many types without a common base
        raise named_error(error, f"an image in the {where}") from error
    (found,) = binding.get_outputs()
    made: ort.OrtValue = found
    return made
