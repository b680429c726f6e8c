"""`build`: neutral graphs to what a target runs."""

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

    A target that was built before is built again where the limits differ.
    """
    from engines.build import build_target

    with progress.showing() as report:
        manifest = build_target(artifact, target, limits.make_options(plans), report)
    output.facts(summary.artifact_summary(artifact, manifest), as_json=json)
    output.note(f"next: {summary.command_text('verify', artifact, '--target', target)}")
