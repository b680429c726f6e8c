"""What a user is told where the provider, its libraries, memory or the right graphs are missing."""

import shutil
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest

from runtime import Session
from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.artifact.records import FileRecord
from runtime.cuda import CudaError
from runtime.engine.cuda.engine import CudaEngine
from runtime.engine.cuda.provider import CUDA, named_error
from runtime.errors import ArtifactError, CapacityError, UnsupportedError
from tests.executing_trt import HostDevice

from .conftest import HOST


def test_an_onnx_runtime_without_the_provider_is_refused_with_what_to_install(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UnsupportedError, match=r"no CUDAExecutionProvider .*WHEEL\[cuda\]"):
        Session.open(built, target="cuda")


def test_an_onnx_runtime_that_replays_stale_sizes_is_refused(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "__version__", "1.30.2")
    with pytest.raises(UnsupportedError, match=r"needs ONNX Runtime 1\.31, this is 1\.30\.2"):
        CudaEngine(Artifact.open(built), provider=HOST, device=HostDevice())


def test_a_provider_whose_libraries_do_not_load_is_refused_and_nothing_runs_on_the_cpu(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ort.InferenceSession

    def without_libraries(*arguments: object, **named: object) -> ort.InferenceSession:
        return real(*arguments, **{**named, "providers": ["CPUExecutionProvider"]})

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", without_libraries)
    with pytest.raises(UnsupportedError, match="could not load its CUDAExecutionProvider"):
        CudaEngine(Artifact.open(built), device=HostDevice())


def test_the_provider_is_asked_for_exact_products_and_for_recordings_of_the_decoder() -> None:
    options = CUDA.options(records=True)
    assert (options["use_tf32"], options["enable_cuda_graph"]) == ("0", "1")
    assert CUDA.options(records=False)["enable_cuda_graph"] == "0"
    assert HOST.options(records=True) == {}


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=x",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : BFCArena::AllocateRawInternal Failed to "
        "allocate memory for requested buffer of size 369098752",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    ],
)
def test_too_little_memory_is_told_from_everything_else(text: str) -> None:
    assert isinstance(named_error(RuntimeError(text), "here"), CapacityError)
    other = named_error(RuntimeError("INVALID_GRAPH: no such op\nmore"), "here")
    assert isinstance(other, ArtifactError)
    assert str(other) == "here: INVALID_GRAPH: no such op"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", 700),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0", 13),
        ("Fail to execute fused moe kernel, cuda error 719", 719),
    ],
)
def test_a_gpu_that_fails_is_no_altered_artifact(text: str, status: int) -> None:
    error = named_error(RuntimeError(text), "a step of the decoder")
    assert isinstance(error, CudaError)
    assert error.status == status
    assert text in str(error)


def test_an_embedding_table_of_another_model_is_refused(built: Path) -> None:
    artifact = Artifact.open(built)
    rows, width = artifact.manifest.embedding.shape
    other = replace(artifact.manifest.embedding, shape=(2 * rows, width // 2))
    artifact = replace(artifact, manifest=replace(artifact.manifest, embedding=other))
    with pytest.raises(
        ArtifactError, match=rf"embedding is \({2 * rows}, {width // 2}\), expected"
    ):
        CudaEngine(artifact, provider=HOST, device=HostDevice())


def test_a_cache_that_does_not_fit_the_device_is_refused_before_weights_are_loaded(
    built: Path,
) -> None:
    with pytest.raises(CapacityError, match="bytes more are needed"):
        CudaEngine(Artifact.open(built), provider=HOST, device=HostDevice(memory_bytes=100_000))


def test_a_target_without_a_joined_graph_is_refused(built: Path) -> None:
    with pytest.raises(ArtifactError, match="target cpu has no graph of the decoder"):
        CudaEngine(Artifact.open(built), "cpu", provider=HOST, device=HostDevice())


def test_another_graph_in_the_place_of_the_decoder_is_refused(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "artifact")
    place = "graphs/decoder.cuda.onnx"
    shutil.copyfile(folder / "graphs/layer_01.cuda.onnx", folder / place)
    manifest = Manifest.read(folder)
    files = {**manifest.files, place: FileRecord.of(folder / place)}
    replace(manifest, files=files).write(folder)
    with pytest.raises(ArtifactError, match="decoder takes hidden, cache, lengths, expected"):
        CudaEngine(Artifact.open(folder), provider=HOST, device=HostDevice())


def test_a_cache_of_a_form_that_the_engine_does_not_run_is_refused(
    built: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(built, tmp_path / "artifact")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(
        text.replace(
            '"dtype": "float32",\n            "width"', '"dtype": "int8",\n            "width"'
        )
    )
    artifact = Artifact.open(folder)
    assert artifact.target("cuda").cache.tensors["cache"].dtype == "int8"
    with pytest.raises(ArtifactError, match="a cache of cache in int8; the CUDA engine runs"):
        CudaEngine(artifact, provider=HOST, device=HostDevice())
