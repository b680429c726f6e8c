"""Opens the engine that runs a target: ONNX Runtime for graphs, TensorRT for plans."""

from ..artifact.folder import Artifact
from .cpu.weights_place import WeightsPlace
from .protocol import Engine


def open_engine(
    artifact: Artifact,
    target: str,
    *,
    num_threads: int | None = None,
    weights: WeightsPlace = "auto",
) -> Engine:
    """Load what a target runs.

    Args:
        artifact: opened, hence checked.
        target: which of its targets.
        num_threads: cores for ONNX Runtime; all that this process may use, if left out.
        weights: where ONNX Runtime's CPU engine reads its weights.

    Raises:
        ArtifactError: the artifact was not built for the target.
        UnsupportedError: plans need another TensorRT or another GPU, or ONNX Runtime has no GPU.
        CapacityError: memory is too small.
    """
    record = artifact.target(target)
    if record.plans is not None:
        from .trt.engine import TensorRTEngine

        return TensorRTEngine(artifact, target)
    if record.decoder is not None:
        from .cuda.engine import CudaEngine

        return CudaEngine(artifact, target)
    from .cpu.engine import CpuEngine

    return CpuEngine(artifact, target, num_threads=num_threads, weights=weights)
