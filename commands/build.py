"""`build`: neutral graphs to what a target runs."""

from dataclasses import asdict

from . import options, output, progress, summary
from .flag_groups import LimitFlags, PlanFlags, with_flag_groups


@with_flag_groups
def build(
    artifact: options.ArtifactArgument,
    *,
    target: options.TargetOption = "cpu",
    limits: LimitFlags,
    plans: PlanFlags,
    json: options.JsonOption = False,
) -> None:
    """Fit an exported artifact's graphs to a target and fix its limits.

    Limits that are left out stay as the target has them; the defaults are for a target that was not
    built before. Plans of TensorRT are built again where a limit differs.
    """
    from engines.build import build_target

    with progress.showing() as report:
        manifest = build_target(artifact, target, limits.make_options(plans), report)
    made = summary.artifact_summary(artifact, manifest)
    output.facts({**made, **asdict(manifest.targets[target].limits)}, as_json=json)
    output.note(f"next: {summary.command_text('verify', artifact, '--target', target)}")
