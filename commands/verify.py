"""`verify`: is every file what it was, does every graph still say the same."""

from . import options, output, progress


def verify(
    artifact: options.ArtifactArgument,
    *,
    target: options.TargetOption = "cpu",
    on_device: options.OnDeviceOption = False,
    json: options.JsonOption = False,
) -> None:
    """Hash every file and measure every graph again.

    A graph is compared with the torch module it was traced from. The error of a graph is max|a
    - b| / max|b| over its outputs. Fails if one is too large. With --on-device, the plans of a
    target of TensorRT also run, are compared with target cpu of the same artifact, and timed.
    """
    from calibration.verify import tolerance, verify_artifact

    with progress.showing() as report:
        manifest = verify_artifact(artifact, target, report, on_device=on_device)
    allowed = tolerance(manifest, target)
    errors: dict[str, float] = dict(manifest.parity[target])
    if json:
        graphs = {name: {"error": error, "allowed": allowed} for name, error in errors.items()}
        found = {"artifact": str(artifact), "target": target, "graphs": graphs}
        output.json_value(found | ({"on_device": manifest.devices[target]} if on_device else {}))
        return
    rows = [(name, f"{error:.1e}", f"{allowed:.0e}") for name, error in errors.items()]
    output.table(("graph", "error", "allowed"), rows)
    if on_device:
        output.heading("on this card, beside target cpu")
        output.facts(manifest.devices[target], as_json=False)
