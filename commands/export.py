"""`export`: checkpoint to neutral graphs."""

from . import options, output, progress, summary
from .flag_groups import ExportFlags, with_flag_groups


@with_flag_groups
def export(
    checkpoint: options.CheckpointArgument,
    artifact: options.NewArtifactArgument,
    *,
    wanted: ExportFlags,
    json: options.JsonOption = False,
) -> None:
    """Write a checkpoint's graphs and weights as neutral ONNX.

    Every target is built from them. A run that was stopped goes on where it was.
    """
    source = wanted.open(checkpoint)
    from export.stage import export_checkpoint

    with progress.showing() as report:
        manifest = export_checkpoint(source, artifact, wanted.make_options(), report)
    output.facts(summary.artifact_summary(artifact, manifest), as_json=json)
    output.note(f"next: {summary.command_text('build', artifact)}")
