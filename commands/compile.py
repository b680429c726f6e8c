"""`compile`: export or calibrate, build and verify in one run that can be stopped and goes on."""

from pathlib import Path
from typing import TYPE_CHECKING

from . import options, output, progress, summary
from .flag_groups import (
    CalibrationFlags,
    ExportFlags,
    LimitFlags,
    PlanFlags,
    with_flag_groups,
)

if TYPE_CHECKING:
    from calibration.stage import CalibrateOptions
    from engines.options import BuildOptions
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
    samples: CalibrationFlags,
    limits: LimitFlags,
    plans: PlanFlags,
    json: options.JsonOption = False,
) -> None:
    """Export, calibrate, build and verify in one run.

    A quantised recipe is calibrated on conversations (--data), and its loss against fp32 is
    measured and printed. A run that was stopped goes on where it was. Limits that are left out stay
    as the target has them, if it was built before.
    """
    source = wanted.open(checkpoint)
    sizes = limits.make_options(plans)
    chosen = wanted.make_options()
    samples.note_unused(chosen.recipe)
    _check_build(source, artifact, target, sizes, chosen)
    calibration = samples.make_options(chosen) if chosen.recipe.is_quantised else None
    manifest = _run_stages(source, artifact, chosen, calibration, target, sizes)
    errors: dict[str, float] = dict(manifest.parity[target])
    largest = {"largest_error": max(errors.values())}
    price: dict[str, float] = dict(manifest.prices.get(target, {}))
    facts = {**summary.artifact_summary(artifact, manifest), **largest, **price}
    output.facts(facts, as_json=json)
    if calibration is not None:
        output.note(f"report: {artifact / 'calibration' / 'report.html'}")
    where = () if target == "cpu" else ("--target", target)
    words = ("run", artifact, *where, "--image", "PICTURE", "What is in this picture?")
    place = ", on a machine with such a card, to which you may copy the artifact"
    is_for_cards = target == "cuda" or target.startswith("rtx:")
    output.note(f"next{place if is_for_cards else ''}: {summary.command_text(*words)}")


def _check_build(
    source: "Checkpoint",
    folder: Path,
    target: str,
    sizes: "BuildOptions",
    wanted: "ExportOptions",
) -> None:
    """Refuse what the build would refuse, before the export, which is slow."""
    from engines.build import check_build
    from engines.former_limits import former_limits
    from runtime.artifact.manifest import FILE_NAME, Manifest

    is_there = (folder / FILE_NAME).exists()
    check_build(
        target,
        sizes,
        source.config,
        source.folder,
        wanted.recipe,
        num_layers=len(wanted.checked_layers(source.config)),
        former=former_limits(folder, Manifest.read(folder), target) if is_there else None,
    )


def _run_stages(
    source: "Checkpoint",
    folder: Path,
    wanted: "ExportOptions",
    calibration: "CalibrateOptions | None",
    target: str,
    sizes: "BuildOptions",
) -> "Manifest":
    from calibration.data.conversations import Conversations
    from calibration.stage import calibrate_checkpoint
    from calibration.verify import verify_artifact
    from engines.build import build_target
    from export.stage import export_checkpoint

    with progress.showing() as report:
        held_out = None
        if calibration is None:
            export_checkpoint(source, folder, wanted, report)
        else:
            calibrate_checkpoint(source, folder, calibration, report)
            held_out = Conversations.load(calibration.data).held_out
        build_target(folder, target, sizes, report)
        return verify_artifact(folder, target, report, held_out=held_out)
