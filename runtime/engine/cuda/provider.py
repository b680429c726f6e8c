"""Sessions of ONNX Runtime on a GPU: the provider found, its options, errors in the user's words.

Source: onnxruntime-gpu 1.31.1: provider options, `gpu_graph_id`, `preload_dlls`.
"""

import contextlib
import re
import sys
from dataclasses import dataclass

import onnxruntime as ort

from ...artifact.folder import Artifact
from ...cuda import CudaError
from ...errors import ArtifactError, CapacityError, KimiVLError, UnsupportedError
from ...extras import install_advice
from ..onnx_session import session_options

_INSTALL = (
    f"{install_advice('cuda')}; where `onnxruntime` is installed as well, its files lie over "
    "those of `onnxruntime-gpu`: pip uninstall onnxruntime, then "
    "pip install --force-reinstall --no-deps onnxruntime-gpu"
)
_NO_MEMORY = ("out of memory", "Failed to allocate memory", "CUDA failure 2:", "ALLOC_FAILED")
"""How ONNX Runtime and CUDA say that there is not enough."""
_FAILURE = re.compile(r"\b(?:CUDA|CUBLAS|CUDNN) (?:failure|error):?(?: (\d+))?", re.IGNORECASE)
"""How they say that the GPU or its driver failed, with the number of the error where it is told."""
GRAPH_ID = "gpu_graph_id"
"""Entry of a run's options: which recorded graph it records or replays."""
UNRECORDED = "-1"
_LEAST_VERSION = (1, 31)
"""Earlier kernels read sizes from the host's memory when a recording is replayed: `GatherND`,
`Concat`."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """What runs the graphs, and where its tensors are."""

    name: str
    device_type: str
    """As ONNX Runtime calls the device."""
    can_record: bool
    """Whether steps of decoding are recorded as CUDA graphs."""

    def open(self, artifact: Artifact, path: str, *, records: bool = False) -> ort.InferenceSession:
        """Load one graph of an artifact from the bytes that were hashed.

        Args:
            artifact: opened, hence checked.
            path: of the graph, as in the manifest.
            records: whether runs of it may be recorded.

        Raises:
            UnsupportedError: ONNX Runtime cannot load the provider's libraries.
            CapacityError: the device's memory is too small for the weights.
            ArtifactError: the graph was altered, or ONNX Runtime cannot load it.
        """
        place = artifact.folder / path
        content = artifact.read_checked(path)
        providers = [(self.name, self.options(records=records)), ("CPUExecutionProvider", {})]
        try:
            session = ort.InferenceSession(
                content, session_options(place), providers=providers[: 2 if self.is_gpu else 1]
            )
        except Exception as error:  # the bindings raise many types without a common base
            raise named_error(
                error, f"{place}: ONNX Runtime {ort.__version__} cannot load it"
            ) from (error)
        if self.name not in session.get_providers():
            raise UnsupportedError(
                f"ONNX Runtime {ort.__version__} could not load its {self.name}: the driver or a "
                "library of CUDA 13 or cuDNN 9 is missing or too old (its own message stands "
                f"above); all but the driver comes with {install_advice('cuda')}"
            )
        session.disable_fallback()
        return session

    @property
    def is_gpu(self) -> bool:
        """Whether tensors are in the memory of a GPU."""
        return self.device_type != "cpu"

    def check(self) -> None:
        """Find the provider, and the libraries that it needs.

        Raises:
            UnsupportedError: this ONNX Runtime was built without it, or is too old.
        """
        available = ort.get_available_providers()
        if self.name not in available:
            raise UnsupportedError(
                f"this ONNX Runtime {ort.__version__} has no {self.name} "
                f"(it has {', '.join(available)}); {_INSTALL}"
            )
        numbers = tuple(int(one) for one in re.findall(r"\d+", ort.__version__)[:2])
        if numbers < _LEAST_VERSION:
            least = ".".join(map(str, _LEAST_VERSION))
            raise UnsupportedError(
                f"target cuda needs ONNX Runtime {least}, this is {ort.__version__}; {_INSTALL}"
            )
        if self.is_gpu:
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
                ort.preload_dlls()

    def options(self, *, records: bool) -> dict[str, str]:
        """Give what ONNX Runtime is told about the provider."""
        if not self.is_gpu:
            return {}
        return {
            "device_id": "0",
            "use_tf32": "0",  # fp32 is what an fp32 recipe asks for
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": "1" if records and self.can_record else "0",
        }


CUDA = Provider(name="CUDAExecutionProvider", device_type="cuda", can_record=True)


def named_error(error: Exception, where: str) -> KimiVLError:
    """Say what ONNX Runtime said: too little memory, a GPU that fails, or a graph it refuses."""
    text = str(error)
    reason = (text.splitlines() or [type(error).__name__])[0]
    if any(sign.lower() in text.lower() for sign in _NO_MEMORY):
        return CapacityError(
            f"{where}: the device's memory is too small ({reason}); end what else uses it, build "
            "with a smaller --max-kv-cache-capacity, --max-batch-size, --prefill-chunk or "
            "--max-image-tokens, or take a narrower recipe"
        )
    failure = _FAILURE.search(text)
    if failure is not None:
        return CudaError(where, int(failure[1] or 0), reason)
    return ArtifactError(f"{where}: {reason}")
