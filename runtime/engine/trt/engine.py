"""The engine protocol on plans of TensorRT: only ids cross the border, and logits if asked for."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import names
from ...artifact.folder import Artifact
from ...artifact.records import PlansRecord, TargetRecord
from ...config import KimiVLConfig
from ...cuda import Cuda
from ...errors import ArtifactError
from ...limits import Limits
from ...prompt.patches import PatchedImage
from ..checks import check_finite, check_grid
from ..embedding import EmbeddingTable
from ..piecewise import HeadRows, run_in_pieces
from ..protocol import FloatArray, IntArray
from ..vision_inputs import vision_inputs
from .contract import check_plans
from .decoder import Decoder, LayerGroup, Reader
from .device import CudaDevice, Device
from .head import Head
from .memory import DeviceCache, Weights
from .package import check_device, load_package
from .pieces import Piece
from .plan import Plan
from .stage import Stage


class TensorRTEngine:
    """Runs an artifact's plans for one target of TensorRT."""

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
        config = KimiVLConfig.load(artifact.model_folder / "config.json")
        self._limits, self._device = record.limits, device
        self._table = EmbeddingTable(artifact)
        self._vision_config = config.vision
        loaded = _load_plans(artifact, plans, trt, device)
        check_plans(str(artifact.folder), loaded, plans, record, config)
        stages = _make_stages(artifact, loaded, plans, device)
        layers = [names.layer_name(layer) for layer in artifact.manifest.layers]
        self._vision, self._projector = stages[names.VISION], stages[names.PROJECTOR]
        self._cache = DeviceCache(layers, record.cache, record.limits, device)
        self._head = Head(
            stages[names.HEAD],
            vocab_size=self._table.vocab_size,
            limits=record.limits,
            device=device,
        )
        self._decoder = Decoder(
            _layer_groups(plans, stages, layers),
            self._head,
            self._cache,
            width=config.decoder.width,
            limits=record.limits,
            device=device,
        )

    @property
    def limits(self) -> Limits:
        """The sizes this engine was built for."""
        return self._limits

    def encode(self, image: PatchedImage) -> FloatArray:
        """Turn one image into its rows of the prompt, (M, C)."""
        check_grid(image.grid, self._limits)
        given = vision_inputs(image, self._vision_config)
        with self._device.active():
            (merged,) = self._vision.run(given, [image.num_tokens])
            (features,) = self._projector.run({names.MERGED: merged}, [image.num_tokens])
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
        self._run(slots, hidden, lengths, rows, found, self._head.read_logits)
        return found

    def step_greedy(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray, rows: IntArray
    ) -> IntArray:
        """Append S tokens to each of B slots and return the best next ids of chosen ones (N,)."""
        found = np.empty(len(rows), dtype=np.int64)
        self._run(slots, hidden, lengths, rows, found, self._head.read_best)
        return found

    def _run(
        self,
        slots: Sequence[int],
        hidden: FloatArray,
        lengths: IntArray,
        rows: IntArray,
        found: NDArray[Any],
        read: Reader,
    ) -> None:
        def run(piece: Piece, given: FloatArray, done: IntArray) -> HeadRows:
            return self._decoder.run(piece.first_slot, given, done, piece.rows, read)

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

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` cached tokens of one slot to another."""
        with self._device.active():
            self._cache.copy_prefix(source, target, length)


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
    artifact: Artifact, plans: dict[str, Plan], record: PlansRecord, device: Device
) -> dict[str, Stage]:
    """Copy the weights to the device and join each graph's with its plan."""
    weights = Weights(artifact, device)
    scratch = device.allocate(max(1, *(plan.scratch_bytes for plan in plans.values())))
    return {
        name: Stage(plan, weights.addresses(record.engines[name].weights), scratch, device)
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
