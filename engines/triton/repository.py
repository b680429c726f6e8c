"""A complete model repository for an artifact and one of its targets."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.artifact.folder import CHECKED_FILE, Artifact
from runtime.errors import InputError, describe_problems
from runtime.files import refuse_inside
from runtime.progress import Progress, silent

from .conversation import conversation_files
from .encoder import onnx_encoder_files, plan_encoder_files
from .files import Files, write_folder

Encoder = Literal["inside", "onnx", "plan"]
"""Where images are encoded: inside the conversational model alone; or by models of their own too,
in the server's ONNX Runtime or TensorRT."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions:
    """What a repository is made for.

    Raises:
        InputError: the name is none that a model can have, or the artifact's place is no absolute
            path; both are named at once.
    """

    target: str = "cpu"
    name: str = "kimi_vl"
    """Of the conversational model; others begin with it."""
    encoder: Encoder = "inside"
    artifact_at: Path | None = None
    """Absolute: where the server will find the artifact; in the repository, if left out."""

    def __post_init__(self) -> None:
        """Refuse what the server would misread."""
        problems = []
        if not _NAME.fullmatch(self.name):
            problems.append(
                f"model name {self.name!r}: expected letters, digits, dots, - and _, which is also "
                "a folder's name"
            )
        if self.artifact_at is not None and not _is_portable(self.artifact_at):
            problems.append(
                f"artifact at {str(self.artifact_at)!r}: expected an absolute path in UTF-8, as "
                "the server will see it"
            )
        if problems:
            raise InputError(describe_problems("repository", problems))


def _is_portable(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # a file name of other bytes
        return False
    return path.is_absolute()


def write_repository(
    artifact_folder: Path,
    repository: Path,
    options: RepositoryOptions,
    progress: Progress = silent,
) -> list[str]:
    """Write a model repository and return the names of its models.

    Raises:
        ArtifactError: the artifact is altered, or not built for the target.
        UnsupportedError: the target has no such encoder.
        KimiVLError: the repository's folder holds something else, or lies in the artifact.
    """
    refuse_inside(repository, artifact_folder)
    artifact = Artifact.open(artifact_folder, progress=progress)
    artifact.target(options.target)
    files: Files = conversation_files(artifact, options.name, options.target, options.artifact_at)
    if options.encoder == "onnx":
        files |= onnx_encoder_files(artifact, options.name, options.target)
    elif options.encoder == "plan":
        files |= plan_encoder_files(artifact, options.name, options.target)
    write_folder(repository, files, ignored=frozenset({CHECKED_FILE}), progress=progress)
    return sorted({name.split("/")[0] for name in files})
