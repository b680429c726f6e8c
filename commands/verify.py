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
    - b| / max|b| over its outputs. The embedding table as it is read is compared with what the
    recipe says. Fails if an error is too large. With --on-device, the plans of a
    target of TensorRT also run, are compared with target cpu of the same artifact, and timed.
    """
    from calibration.verify import OWN_LIMITS, tolerance, verify_artifact

    with progress.showing() as report:
        manifest = verify_artifact(artifact, target, report, on_device=on_device)
    errors: dict[str, float] = dict(manifest.parity[target])
    allowed = {name: tolerance(manifest, target) for name in errors} | OWN_LIMITS
    if json:
        graphs = {
            name: {"error": error, "allowed": allowed[name]} for name, error in errors.items()
        }
        found = {"artifact": str(artifact), "target": target, "graphs": graphs}
        output.json_value(found | ({"on_device": manifest.devices[target]} if on_device else {}))
        return
    rows = [(name, f"{error:.1e}", f"{allowed[name]:.0e}") for name, error in errors.items()]
    output.table(("graph", "error", "allowed"), rows)
    if on_device:
        output.heading("on this card, beside target cpu")
        output.facts(manifest.devices[target], as_json=False)
