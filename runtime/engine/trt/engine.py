"""The engine protocol on plans of TensorRT: only ids cross the border, and logits if asked for."""

import contextlib
from collections.abc import Mapping, Sequence
from types import ModuleType

from ... import names
from ...artifact.folder import Artifact
from ...artifact.records import PlansRecord, TargetRecord
from ...cuda import Cuda, CudaError
from ...errors import ArtifactError
from ..gpu.device import CudaDevice, Device
from ..gpu.engine import GpuEngine
from ..gpu.memory import Memory
from ..protocol import FloatArray
from .contract import check_plans
from .decoder import Decoder, LayerGroup
from .head import Head
from .memory import DeviceCache, Weights
from .package import check_device, load_package
from .plan import Plan
from .stage import Stage


class TensorRTEngine(GpuEngine):
    """Runs an artifact's plans for one target of TensorRT."""

    _decoder: Decoder

    def __init__(
        self,
        artifact: Artifact,
        target: str,
        *,
        package: ModuleType | None = None,
        device: Device | None = None,
    ) -> None:
        """Load all plans and copy all weights to the device.

        Args:
            artifact: opened, hence checked; a plan is loaded from the very bytes that are hashed.
            target: which of its targets.
            package: `tensorrt_rtx` or `tensorrt`; imported as the manifest says, if left out.
            device: where to run; the first GPU, if left out.

        Raises:
            UnsupportedError: another TensorRT or another GPU than the plans were built for.
            CapacityError: the device has too little memory.
            ArtifactError: the target has no plans, or they are not those of this model.
        """
        record = artifact.target(target)
        plans = _plans(artifact, record, target)
        trt = package or load_package(plans)
        device = device or CudaDevice(Cuda.load())
        check_device(plans, device)
        super().__init__(artifact, record, device)
        loaded = _load_plans(artifact, plans, trt, device)
        check_plans(str(artifact.folder), loaded, plans, record, self._config)
        stages = _make_stages(artifact, loaded, plans, self._memory)
        layers = [names.layer_name(layer) for layer in artifact.manifest.layers]
        self._vision, self._projector = stages[names.VISION], stages[names.PROJECTOR]
        cache = DeviceCache(layers, record.cache, record.limits, self._memory)
        head = Head(
            stages[names.HEAD],
            vocab_size=self._table.vocab_size,
            limits=record.limits,
            memory=self._memory,
        )
        self._decoder = Decoder(
            _layer_groups(plans, stages, layers),
            head,
            cache,
            width=self._config.decoder.width,
            limits=record.limits,
            memory=self._memory,
        )
        self._cache = cache

    def _features(self, inputs: Mapping[str, FloatArray], num_tokens: int) -> FloatArray:
        (merged,) = self._vision.run(inputs, [num_tokens])
        (features,) = self._projector.run({names.MERGED: merged}, [num_tokens])
        return features

    def _unload(self) -> None:
        with contextlib.suppress(CudaError), self._device.active():  # of a lost device
            self._decoder.forget_recordings()
        del self._vision, self._projector


def _plans(artifact: Artifact, record: TargetRecord, target: str) -> PlansRecord:
    if record.plans is None:
        raise ArtifactError(f"{artifact.folder}: target {target} has no plans of TensorRT")
    return record.plans


def _load_plans(
    artifact: Artifact, record: PlansRecord, trt: ModuleType, device: Device
) -> dict[str, Plan]:
    """Load each plan once, whatever graphs share it."""
    loaded: dict[str, Plan] = {}
    for one in record.engines.values():
        if one.path not in loaded:
            content = artifact.read_checked(one.path)
            loaded[one.path] = Plan(trt, content, str(artifact.folder / one.path), device)
    return {name: loaded[one.path] for name, one in record.engines.items()}


def _make_stages(
    artifact: Artifact, plans: dict[str, Plan], record: PlansRecord, memory: Memory
) -> dict[str, Stage]:
    """Copy the weights to the device and join each graph's with its plan."""
    weights = Weights(artifact, memory)
    scratch = memory.allocate(max(1, *(plan.scratch_bytes for plan in plans.values())))
    return {
        name: Stage(plan, weights.addresses(record.engines[name].weights), scratch, memory)
        for name, plan in plans.items()
    }


def _layer_groups(
    record: PlansRecord, stages: Mapping[str, Stage], layers: Sequence[str]
) -> list[LayerGroup]:
    """List what runs one behind the other: names sort in the order of the layers."""
    return [
        LayerGroup(one.graphs, stages[name])
        for name, one in sorted(record.engines.items())
        if one.graphs[0] in layers
    ]
