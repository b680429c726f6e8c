"""One build of some graphs for a target of TensorRT, as the build stage does it, and what it made.

    python -m benchmarks.plan_build CASE FOLDER      CASE as JSON; prints the result as JSON

A process of its own, so that its memory is that of the stage.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

from runtime.limits import Limits

if TYPE_CHECKING:
    from engines.job import Job
    from runtime.artifact.manifest import Manifest


MOST_TEXT = 240
"""Letters of an error that are kept."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is built."""

    recipe: str
    target: str
    graphs: tuple[str, ...]
    weights: Literal["external", "embedded"]
    limits: Limits

    @property
    def text(self) -> str:
        """The case in the form that `read` takes."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> "Case":
        """Read what `text` wrote."""
        fields = json.loads(text)
        graphs, limits = tuple(fields.pop("graphs")), Limits(**fields.pop("limits"))
        return cls(graphs=graphs, limits=limits, **fields)


def build(case: Case, folder: Path) -> dict[str, Any]:
    """Run the build stage and sum up its plans, or say why there are none.

    Args:
        case: what is built.
        folder: with neutral graphs in `graphs/` and the model's config in `model/`.
    """
    from engines.trt.build import TensorRTBuild
    from export.graph.journal import Journal
    from runtime.errors import KimiVLError

    ends: dict[str, float] = {}

    def note(stage: str, done: int, total: int) -> None:
        ends[stage] = time.perf_counter()

    started = time.perf_counter()
    stage = TensorRTBuild(_job(case, folder))
    journal = Journal(folder, "build", stage.key)
    try:
        stage.make(journal, note)
    except KimiVLError as error:
        text = str(error).replace(f"{folder}/", "")
        return {"error": shorten(text, MOST_TEXT, placeholder=" ...")}
    finally:
        journal.close()
    ended = time.perf_counter()
    engines = folder / "engines"
    reports = [json.loads(path.read_text()) for path in sorted(engines.glob("*/*.json"))]
    weights = [folder / "graphs" / "weights" / f"{name}.bin" for name in case.graphs]
    return {
        "lower_s": round(ends["lower"] - started, 2),
        "build_s": round(ended - ends["lower"], 2),
        "num_plans": len(reports),
        "plan_bytes": sum(path.stat().st_size for path in engines.glob("*/*.plan")),
        "weights_bytes": sum(path.stat().st_size for path in weights),
        "scratch_bytes": max(report["activation_bytes"] for report in reports),
        "wanted_precision": round(min(report["wanted_precision"] for report in reports), 4),
    }


def _job(case: Case, folder: Path) -> "Job":
    from engines.job import Job
    from engines.options import BuildOptions, PlanOptions
    from export.recipe.reading import load_recipe
    from runtime.config import KimiVLConfig

    return Job(
        folder=folder,
        target=case.target,
        manifest=_manifest(case, folder),
        config=KimiVLConfig.load(folder / "model" / "config.json"),
        recipe=load_recipe(case.recipe),
        limits=case.limits,
        options=BuildOptions(plans=PlanOptions(weights=case.weights)),
    )


def _manifest(case: Case, folder: Path) -> "Manifest":
    """Make a manifest of what a build reads: graphs and their hashes."""
    from runtime.artifact.manifest import Manifest
    from runtime.artifact.records import FileRecord, TableRecord
    from runtime.files import sha256_of

    graphs = {name: f"graphs/{name}.onnx" for name in case.graphs}
    layers = [int(name.removeprefix("layer_")) for name in graphs if name.startswith("layer_")]
    return Manifest(
        source={},
        recipe=case.recipe,
        precision={},
        layers=tuple(layers),
        taps=False,
        versions={},
        embedding=TableRecord(path="", dtype="float16", shape=(0, 0)),
        graphs=graphs,
        files={
            path: FileRecord(bytes=(folder / path).stat().st_size, sha256=sha256_of(folder / path))
            for path in graphs.values()
        },
    )


if __name__ == "__main__":
    result = build(Case.read(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.write(json.dumps(result) + "\n")
