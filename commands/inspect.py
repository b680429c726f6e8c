"""`inspect`: what an artifact's manifest says. Loads no graph and no file but the manifest."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.artifact.manifest import FILE_NAME, Manifest
from runtime.artifact.records import PlansRecord, TargetRecord
from runtime.files import sha256_of

from . import options, output, summary

_SHOWN_DIGITS = 12
"""Of a file's hash in the table; --json has all of it."""


def inspect(artifact: options.ArtifactArgument, *, json: options.JsonOption = False) -> None:
    """Show what an artifact's manifest says.

    Source, limits, cache, graphs, files, and the errors that were measured. Nothing is checked
    but the manifest itself; verify checks the files.
    """
    manifest = Manifest.read(artifact)
    sha256 = sha256_of(artifact / FILE_NAME)
    if json:
        output.json_value(
            {
                **summary.artifact_summary(artifact, manifest),
                "manifest_sha256": sha256,
                "cache": {name: cache_bytes(manifest, name) for name in manifest.targets},
                "manifest": asdict(manifest),
            }
        )
        return
    _print_head(artifact, manifest, sha256)
    for name, target in manifest.targets.items():
        _print_target(manifest, name, target)
    _print_graphs(manifest)
    output.heading("files")
    rows = [
        (name, output.size(f.bytes), f.sha256[:_SHOWN_DIGITS]) for name, f in manifest.files.items()
    ]
    output.table(("path", "size", "sha256"), rows)


def cache_bytes(manifest: Manifest, target: str) -> dict[str, int]:
    """Compute what the latent cache of a target takes, for one slot and for all."""
    record = manifest.targets[target]
    slot = record.cache.token_bytes * record.limits.max_tokens * len(manifest.layers)
    return {"slot_bytes": slot, "total_bytes": slot * record.limits.max_slots}


def _print_head(folder: Path, manifest: Manifest, sha256: str) -> None:
    values = summary.artifact_summary(folder, manifest)
    values |= {"taps": manifest.taps, "format": manifest.format, "manifest_sha256": sha256}
    output.facts(values, as_json=False)
    output.heading("source")
    output.facts(_flat(manifest.source), as_json=False)
    output.heading("versions")
    output.facts(manifest.versions, as_json=False)


def _plans(plans: PlansRecord) -> dict[str, Any]:
    """Name what runs a target of TensorRT."""
    return {
        "plans": len({one.path for one in plans.engines.values()}),
        "built_with": f"{plans.package} {plans.version}",
        "built_for": list(plans.sms),
        "wanted_precision": plans.wanted_precision,
    }


def _print_target(manifest: Manifest, name: str, target: TargetRecord) -> None:
    cache = cache_bytes(manifest, name)
    output.heading(f"target {name}")
    values: dict[str, Any] = {
        **asdict(target.limits),
        "cache": ", ".join(f"{n} {t.width} {t.dtype}" for n, t in target.cache.tensors.items()),
        "cache_of_a_slot_bytes": cache["slot_bytes"],
        "cache_of_all_slots_bytes": cache["total_bytes"],
        "passes": list(target.passes),
        **(_plans(target.plans) if target.plans else {}),
        **manifest.devices.get(name, {}),
    }
    output.facts(values, as_json=False)


def _print_graphs(manifest: Manifest) -> None:
    """One row for each graph: its file, then for each target the file and the error."""
    columns = ["graph", "neutral"]
    rows = [[name, path] for name, path in manifest.graphs.items()]
    for target, record in manifest.targets.items():
        errors = manifest.parity.get(target, {})
        columns += [target, f"{target} error"]
        for row in rows:
            error = errors.get(row[0])
            shown = "not measured" if error is None else f"{error:.1e}"
            row += [record.graphs.get(row[0], "none"), shown]
    output.heading("graphs")
    output.table(columns, rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested values by their path; of lists of objects, only say how many there are."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name} ")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            flat[f"{prefix}{name}"] = len(value)
        else:
            flat[f"{prefix}{name}"] = value
    return flat
