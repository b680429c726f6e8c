"""ONNX Runtime sessions made from checked bytes of an artifact, sharing the cores politely."""

from functools import cache
from pathlib import Path

import onnxruntime as ort

from ..artifact.folder import Artifact
from ..cores import thread_count
from ..errors import ArtifactError


def open_session(
    artifact: Artifact,
    path: str,
    *,
    num_threads: int | None = None,
    ops_library: Path | None = None,
) -> ort.InferenceSession:
    """Load one graph of an artifact for the CPU provider, from the bytes that were hashed.

    Args:
        artifact: opened, hence checked.
        path: of the graph, as in the manifest.
        num_threads: to start; one for each core to be had, if left out.
        ops_library: custom ops whose kernels take the place of function bodies.

    Raises:
        ArtifactError: the graph was altered, or ONNX Runtime cannot load it.
    """
    return session_from_bytes(
        artifact.read_checked(path),
        artifact.folder / path,
        num_threads=num_threads,
        ops_library=ops_library,
    )


def session_from_bytes(
    content: bytes,
    place: Path,
    *,
    num_threads: int | None = None,
    ops_library: Path | None = None,
) -> ort.InferenceSession:
    """Load a graph for the CPU provider.

    An idle thread pool stops spinning, since about 30 sessions share the cores; beside kernels that
    have threads of their own it never does.

    Args:
        content: the graph.
        place: where it lies, or would lie: its weights are found from there.
        num_threads: to start; one for each core to be had, if left out.
        ops_library: custom ops whose kernels take the place of function bodies.

    Raises:
        ArtifactError: ONNX Runtime cannot load it.
    """
    options = session_options(place, num_threads=num_threads)
    try:
        if ops_library is not None:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            options.register_custom_ops_library(str(ops_library))
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the bindings raise many types without a common base
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{place}: ONNX Runtime {ort.__version__} cannot load it: {reason}"
        ) from error


def session_options(place: Path, *, num_threads: int | None = None) -> ort.SessionOptions:
    """Make what all our sessions have in common.

    Args:
        place: where the graph lies, or would lie.
        num_threads: to start; one for each core to be had, if left out.
    """
    _share_memory()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = thread_count(num_threads)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # shapes change at every step
    # A graph means what it says: no fusion of its own may round where the recipe does not.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Weights stored in 16 bits are widened once, at load, however large they are (0: no limit).
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", "0")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(place.parent.resolve())
    )
    return options


@cache
def _share_memory() -> None:
    """Give all sessions one arena: each would else keep the scratch memory of its largest step."""
    kind, usage = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
    ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", kind, 0, usage), None)
