"""`verify`: is every file what it was, does every graph still say the same."""

from . import options, output, progress


def verify(
    artifact: options.ArtifactArgument,
    *,
    target: options.TargetOption = "cpu",
    json: options.JsonOption = False,
) -> None:
    """Hash every file and measure every graph again.

    A graph is compared with the torch module it was traced from. The error of a graph is max|a
    - b| / max|b| over its outputs. Fails if one is too large.
    """
    from calibration.verify import tolerance, verify_artifact

    with progress.showing() as report:
        manifest = verify_artifact(artifact, target, report)
    allowed = tolerance(manifest)
    errors: dict[str, float] = dict(manifest.parity[target])
    if json:
        graphs = {name: {"error": error, "allowed": allowed} for name, error in errors.items()}
        output.json_value({"artifact": str(artifact), "target": target, "graphs": graphs})
        return
    rows = [(name, f"{error:.1e}", f"{allowed:.0e}") for name, error in errors.items()]
    output.table(("graph", "error", "allowed"), rows)
