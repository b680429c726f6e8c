"""What building TensorRT-RTX plans takes at the released sizes: memory, time, bytes of the plans.

    python -m benchmarks.plans [FOLDER]      FOLDER gets 2 GB, default out/bench/plans

Every build is the build stage itself, in a process of its own whose anonymous memory is read fifty
times a second. It needs no GPU and no weights. Prints a Markdown table and writes
`benchmarks/plans.json`; takes eleven minutes on two cores, so `make bench` leaves it out.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runtime.limits import Limits

from .hollow_graphs import HollowGraphs
from .plan_build import Case

RESULTS = Path(__file__).with_name("plans.json")
PACKAGES = ("tensorrt-rtx", "polygraphy", "triton", "onnx-ir")
TARGETS = {
    "fp16": "rtx:sm89",
    "int8": "rtx:sm89",
    "fp8": "rtx:sm89",
    "int4": "rtx:sm89",
    "int4-fp8": "rtx:sm89",
    "nvfp4": "rtx:sm120",
}
"""Recipes, and what each is built for."""
VISION, DENSE, MOE = "vision", "layer_00", "layer_01"
KINDS = (VISION, "projector", DENSE, MOE, "head")
"""One graph of each kind."""
EMBEDDED = {
    "fp16": ((MOE,), ("head",)),
    "fp8": ((VISION,), (MOE,), ("head",)),
    "int4": ((DENSE,), (MOE,), (MOE, "layer_02", "layer_03")),
}
"""Graphs that are also built with their weights in the plans."""
WHOLE = "int4"
"""The recipe of which all graphs are built at once."""
USUAL = Limits(
    max_tokens=8192, max_input_tokens=8192, max_slots=1, max_patches=5352, prefill_chunk=512
)
"""What `build` takes for the release unless told otherwise."""
OTHER_LIMITS = {
    "fp16": (((MOE, "head"), replace(USUAL, max_slots=4)),),
    "int4": (
        ((DENSE, MOE, "head"), replace(USUAL, max_slots=4)),
        ((DENSE, MOE), replace(USUAL, max_tokens=32768)),
        ((DENSE, MOE, "head"), replace(USUAL, prefill_chunk=2048)),
        ((VISION, "projector"), replace(USUAL, max_patches=17856)),
    ),
    "nvfp4": (
        ((MOE,), replace(USUAL, max_tokens=32768)),
        ((MOE,), replace(USUAL, prefill_chunk=2048)),
    ),
}
OTHER_TARGETS = {"fp8": "rtx:sm89+sm120"}
"""What the MoE layer is also built for."""
INTERVAL_S = 0.02
HEAD = "| graphs | recipe | target | weights | limits | lower | build | memory | plans | scratch |"


def main(workplace: Path) -> int:
    """Make the graphs of each recipe, then build them."""
    from export.recipe.reading import load_recipe

    if workplace.exists():
        shutil.rmtree(workplace)
    load, builds = os.getloadavg()[0], []
    graphs = HollowGraphs(workplace / "model")
    for name, target in TARGETS.items():
        folder = workplace / name
        layers = range(graphs.num_layers if name == WHOLE else 2)
        every = graphs.write(load_recipe(name), layers, folder / "graphs")
        (folder / "model").symlink_to(workplace.absolute() / "model")
        builds += [_measure(case, folder) for case in _cases(name, target, every)]
        shutil.rmtree(folder)
    found = {
        "versions": {name: version(name) for name in PACKAGES},
        "cores": len(os.sched_getaffinity(0)),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "cores_were_shared": load > 0.5,
        "builds": builds,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(as_table(builds))
    return int(any("error" in one for one in builds))


def _cases(recipe: str, target: str, every: tuple[str, ...]) -> Iterator[Case]:
    """List the builds of a recipe.

    Args:
        recipe: its name.
        target: what is built for.
        every: the graphs that there are.
    """
    usual = Case(recipe=recipe, target=target, graphs=(MOE,), weights="external", limits=USUAL)
    for graph in KINDS:
        yield replace(usual, graphs=(graph,))
    for graphs in EMBEDDED.get(recipe, ()):
        yield replace(usual, graphs=graphs, weights="embedded")
    if recipe == WHOLE:
        yield replace(usual, graphs=every)
    for names, limits in OTHER_LIMITS.get(recipe, ()):
        for graph in names:
            yield replace(usual, graphs=(graph,), limits=limits)
    if recipe in OTHER_TARGETS:
        yield replace(usual, target=OTHER_TARGETS[recipe])


def _measure(case: Case, folder: Path) -> dict[str, Any]:
    """Build in another process and watch its memory."""
    command = [sys.executable, "-m", "benchmarks.plan_build", case.text, str(folder.absolute())]
    root, peak = Path(__file__).parents[1], 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        while process.poll() is None:
            peak = max(peak, _anonymous_bytes(process.pid))
            time.sleep(INTERVAL_S)
        said, _ = process.communicate()
    result = json.loads(said) if said else {"error": f"exit status {process.returncode}"}
    shutil.rmtree(folder / "engines", ignore_errors=True)
    for path in folder.glob("graphs/*.rtx-*.onnx"):
        path.unlink()
    found = {
        "recipe": case.recipe,
        "target": case.target,
        "graphs": list(case.graphs),
        "weights": case.weights,
        "limits": asdict(case.limits),
        **result,
        "peak_anonymous_bytes": peak,
    }
    sys.stderr.write(_row(found))
    return found


def _anonymous_bytes(pid: int) -> int:
    """Read what a process has in memory beside files; nothing of one that has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def as_table(builds: Sequence[dict[str, Any]]) -> str:
    """Lay builds out as a Markdown table."""
    return f"{HEAD}\n{'|---' * (HEAD.count('|') - 1)}|\n" + "".join(map(_row, builds))


def _row(one: dict[str, Any]) -> str:
    graphs, limits, usual = one["graphs"], one["limits"], asdict(USUAL)
    cells = [graphs[0] if len(graphs) == 1 else f"{graphs[0]} and {len(graphs) - 1} more"]
    cells += [one["recipe"], one["target"], one["weights"]]
    changed = [f"{name} {size}" for name, size in limits.items() if size != usual[name]]
    cells.append(", ".join(changed) or "usual")
    if "error" in one:
        cells += [f"failed: {one['error']}", "", "", "", ""]
    else:
        cells += [f"{one[name]:.1f} s" for name in ("lower_s", "build_s")]
        sizes = ("peak_anonymous_bytes", "plan_bytes", "scratch_bytes")
        cells += [f"{one[name] / 1e6:.1f} MB" for name in sizes]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/bench/plans")))
