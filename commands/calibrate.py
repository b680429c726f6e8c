"""`calibrate`: a checkpoint and sample conversations to quantised graphs with their price."""

from typing import TYPE_CHECKING, Any

from . import options, output, progress, summary
from .flag_groups import CalibrationFlags, ExportFlags, with_flag_groups

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.artifact.manifest import Manifest


@with_flag_groups
def calibrate(
    checkpoint: options.CheckpointArgument,
    artifact: options.NewArtifactArgument,
    *,
    wanted: ExportFlags,
    samples: CalibrationFlags,
    json: options.JsonOption = False,
) -> None:
    """Quantise a checkpoint's graphs and show what it costs.

    Conversations run through the model, one layer at a time: first those that scales are found
    on, then others that the loss against fp32 is measured on. Fails if an expert saw too little
    or the recipe loses too much. A run that was stopped goes on where it was.
    """
    source = wanted.open(checkpoint)
    from calibration.stage import calibrate_checkpoint

    exported = wanted.make_options()
    samples.note_unused(exported.recipe)
    chosen = samples.make_options(exported)
    with progress.showing() as report:
        manifest = calibrate_checkpoint(source, artifact, chosen, report)
    show_price(artifact, manifest, as_json=json)
    output.note(f"report: {artifact / 'calibration' / 'report.html'}")
    output.note(f"next: {summary.command_text('build', artifact)}")


def show_price(artifact: "Path", manifest: "Manifest", *, as_json: bool) -> None:
    """Print what was made and what it loses."""
    price: dict[str, Any] = dict(manifest.calibration["price"])
    output.facts({**summary.artifact_summary(artifact, manifest), **price}, as_json=as_json)
