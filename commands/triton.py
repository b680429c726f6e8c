"""`triton`: a model repository for NVIDIA's Triton Inference Server."""

import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options, output, progress

_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")

RepositoryArgument = Annotated[
    Path,
    typer.Argument(metavar="REPOSITORY", help="The folder to make; nothing in it is overwritten."),
]
EncoderOption = Annotated[
    Literal["inside", "onnx", "plan"],
    typer.Option(
        help="Where images are encoded: inside the conversational model alone; or by models of "
        "their own too, in the server's ONNX Runtime, or its TensorRT (target trt)."
    ),
]
NameOption = Annotated[
    str, typer.Option(metavar="NAME", help="The conversational model; others begin with it.")
]
ArtifactAtOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where the server will find the artifact, such as a mounted volume.",
        show_default="a copy in the repository",
    ),
]


def triton(
    artifact: options.ArtifactArgument,
    repository: RepositoryArgument,
    *,
    target: options.TargetOption = "cpu",
    encoder: EncoderOption = "inside",
    name: NameOption = "kimi_vl",
    artifact_at: ArtifactAtOption = None,
    json: options.JsonOption = False,
) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server.

    Its conversational model streams answers of many requests at once, on any target. The server
    needs the package kimivl; docs/triton.md and examples/triton say how.
    """
    from engines.triton.repository import RepositoryOptions, write_repository

    wanted = RepositoryOptions(target=target, encoder=encoder, name=name, artifact_at=artifact_at)
    with progress.showing() as report:
        models = write_repository(artifact, repository, wanted, report)
    output.facts({"repository": str(repository), "models": models}, as_json=json)
    output.note(f"next: {shlex.join(['tritonserver', f'--model-repository={repository}'])}")
    if not _PLAIN.fullmatch(str(repository.resolve())):
        output.note(
            "warning: servers start Python models through a shell that takes only plain paths; put "
            "the repository where its path has letters, digits, and /._+- alone"
        )
