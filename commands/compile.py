"""`compile`: export, build and verify in one run that can be stopped and goes on."""

from pathlib import Path
from typing import TYPE_CHECKING

from . import options, output, progress, summary
from .flag_groups import ExportFlags, LimitFlags, with_flag_groups

if TYPE_CHECKING:
    from engines.build import BuildOptions
    from export.checkpoint.reader import Checkpoint
    from export.stage import ExportOptions
    from runtime.artifact.manifest import Manifest


@with_flag_groups
def compile_checkpoint(
    checkpoint: options.CheckpointArgument,
    artifact: options.NewArtifactArgument,
    *,
    target: options.TargetOption = "cpu",
    wanted: ExportFlags,
    limits: LimitFlags,
    json: options.JsonOption = False,
) -> None:
    """Export, build and verify in one run.

    A run that was stopped goes on where it was.
    """
    source = wanted.open(checkpoint)
    sizes = limits.make_options()
    _check_build(source, target, sizes)
    manifest = _run_stages(source, artifact, wanted.make_options(), target, sizes)
    errors: dict[str, float] = dict(manifest.parity[target])
    largest = {"largest_error": max(errors.values())}
    output.facts({**summary.artifact_summary(artifact, manifest), **largest}, as_json=json)
    question = "What is in this picture?"
    output.note(f"next: {summary.command_text('run', artifact, '--image', 'PICTURE', question)}")


def _check_build(source: "Checkpoint", target: str, sizes: "BuildOptions") -> None:
    """Refuse what the build would refuse, before the export, which is slow."""
    from engines.build import check_build

    check_build(target, sizes, source.config, source.folder)


def _run_stages(
    source: "Checkpoint",
    folder: Path,
    wanted: "ExportOptions",
    target: str,
    sizes: "BuildOptions",
) -> "Manifest":
    from calibration.verify import verify_artifact
    from engines.build import build_target
    from export.stage import export_checkpoint

    with progress.showing() as report:
        export_checkpoint(source, folder, wanted, report)
        build_target(folder, target, sizes, report)
        return verify_artifact(folder, target, report)
