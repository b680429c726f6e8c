"""The conversational model of a repository: its configuration, its code, its artifact."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import FILE_NAME
from runtime.scheduling.options import SchedulerOptions
from runtime.triton import tensors
from runtime.triton.settings import DEFAULT_MAX_IMAGES

from .config_text import Symbol, config_text, map_field
from .files import Files

VERSION = "1"
CONFIG = "config.pbtxt"
ARTIFACT_FOLDER = "artifact"
"""Beside `model.py`, where the repository holds the artifact itself."""

_MODEL = '''"""Written by `tool.py triton`: code in the package kimivl, settings in config.pbtxt."""

from kimivl.triton.{module} import {name} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def model_code(module: str, name: str) -> bytes:
    """Write a `model.py` that takes a class of the runtime."""
    return _MODEL.format(module=module, name=name).encode()


def tensor_fields(declared: Sequence[tensors.Tensor]) -> list[dict[str, object]]:
    """Describe inputs or outputs as `config.pbtxt` does."""
    found: list[dict[str, object]] = []
    for one in declared:
        fields: dict[str, object] = {
            "name": one.name,
            "data_type": Symbol(one.data_type),
            "dims": one.dims,
        }
        found.append(fields | ({"optional": True} if one.is_optional else {}))
    return found


def conversation_files(
    artifact: Artifact, name: str, target: str, artifact_at: Path | None
) -> Files:
    """List the files of the conversational model.

    Args:
        artifact: opened, and built for the target.
        name: of the model.
        target: what the model runs.
        artifact_at: where the server will find the artifact; in the repository, if left out.
    """
    files: Files = {
        f"{name}/{CONFIG}": _config(artifact, name, target, artifact_at).encode(),
        f"{name}/{VERSION}/model.py": model_code("model", "ConversationModel"),
    }
    if artifact_at is None:
        inside = f"{name}/{VERSION}/{ARTIFACT_FOLDER}"
        for path in (FILE_NAME, *artifact.manifest.files):
            files[f"{inside}/{path}"] = artifact.folder / path
    return files


def _config(artifact: Artifact, name: str, target: str, artifact_at: Path | None) -> str:
    manifest = (artifact.folder / FILE_NAME).read_bytes()
    defaults = SchedulerOptions()
    parameters = {
        tensors.ARTIFACT: str(artifact_at or ARTIFACT_FOLDER),
        tensors.MANIFEST_SHA256: hashlib.sha256(manifest).hexdigest(),
        tensors.TARGET: target,
        tensors.MAX_QUEUED: str(defaults.max_queued),
        tensors.IMAGE_CACHE_BYTES: str(defaults.image_cache_bytes),
        tensors.MAX_IMAGES: str(DEFAULT_MAX_IMAGES),
    }
    return config_text(
        {
            "name": name,
            "backend": "python",
            "max_batch_size": 0,
            "input": tensor_fields(tensors.INPUTS),
            "output": tensor_fields(tensors.OUTPUTS),
            "instance_group": [{"count": 1, "kind": Symbol("KIND_CPU")}],
            "model_transaction_policy": {"decoupled": True},
            "parameters": map_field(
                {key: {"string_value": value} for key, value in parameters.items()}
            ),
        }
    )
