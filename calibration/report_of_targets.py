"""The report once more, with what a target of the finished artifact loses."""

import json
from dataclasses import replace

from export.recipe.reading import recipe_from_values
from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.artifact.records import FileRecord

from .price.judged import Judged
from .report.page import write_report

QUALITY_PATH, REPORT_PATH = "calibration/quality.json", "calibration/report.html"


def report_targets(artifact: Artifact, manifest: Manifest, judged: Judged) -> Manifest:
    """Write the report anew, with the prices of all targets; returns the manifest with its hash.

    A kill at any moment leaves a manifest whose files are what it says.

    Args:
        artifact: opened, hence checked.
        manifest: with the prices; not written yet.
        judged: the conversations that judged the recipe.
    """
    quality = json.loads(artifact.read_checked(QUALITY_PATH))
    is_told = manifest.prices == artifact.manifest.prices
    if is_told or "checkpoint" not in quality:  # an earlier version's report stays as it is
        return manifest
    others = {path: one for path, one in manifest.files.items() if path != REPORT_PATH}
    replace(artifact.manifest, files=others).write(artifact.folder)
    path = artifact.folder / REPORT_PATH
    write_report(
        path,
        quality,
        recipe=recipe_from_values(manifest.precision, manifest.recipe, str(artifact.folder)),
        samples=judged.samples,
        examples=judged.examples,
        reference=judged.reference,
        decode=judged.prompts.tokenizer.decode,
        gate=manifest.calibration["gate"],
        problems=(),
        prices=manifest.prices,
    )
    return replace(manifest, files={**manifest.files, REPORT_PATH: FileRecord.of(path)})
