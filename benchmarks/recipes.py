"""What every recipe loses on nano: all 500 held-out questions, through the compiled artifact.

    python -m benchmarks.recipes [FOLDER]      FOLDER gets 60 MB, default out/bench/recipes

Prints a Markdown table and writes `benchmarks/recipes.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

NANO = Path(__file__).parents[1] / "examples" / "nano" / "checkpoint"
RESULTS = Path(__file__).with_name("recipes.json")
MAX_NEW_TOKENS = 64


def main(workplace: Path) -> int:
    """Compile and ask, one recipe after the other."""
    from export.recipe.reading import recipe_names

    found = {name: _measure(name, workplace / name) for name in recipe_names()}
    RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(_table(found))
    return 0


def _measure(name: str, folder: Path) -> dict[str, Any]:
    from calibration.data.conversations import DataOptions
    from calibration.data.examples import load_examples
    from calibration.evaluate import evaluate
    from calibration.stage import CalibrateOptions, calibrate_checkpoint
    from engines.build import build_target
    from engines.options import BuildOptions
    from export.checkpoint.reader import Checkpoint
    from export.recipe.reading import load_recipe
    from export.stage import ExportOptions, export_checkpoint
    from runtime import Session

    checkpoint = Checkpoint.open(NANO)
    export = ExportOptions(recipe=load_recipe(name))
    if export.recipe.is_quantised:
        data = DataOptions(data="nano-calibration", held_out="nano")
        calibrate_checkpoint(checkpoint, folder, CalibrateOptions(export=export, data=data))
    else:
        export_checkpoint(checkpoint, folder, export)
    manifest = build_target(folder, "cpu", BuildOptions(max_tokens=256, max_slots=8))
    session = Session.open(folder, num_threads=1)
    result = evaluate(session, load_examples("nano"), max_new_tokens=MAX_NEW_TOKENS)
    weights = sum(
        record.bytes
        for path, record in manifest.files.items()
        if path.endswith(".bin") and not path.endswith(".cpu.bin")
    )
    price = dict(manifest.calibration.get("price", {}))
    return {"exact_match": result.exact_match, "weights_bytes": weights, "price": price}


def _table(found: dict[str, Any]) -> str:
    lines = ["| recipe | exact match | mean KL | top-1 | weights |", "|---|---|---|---|---|"]
    for name, one in found.items():
        price = one["price"]
        kl = f"{price['kl_mean']:.6f}" if price else ""
        top1 = f"{100 * price['top1']:.2f} %" if price else ""
        size = f"{one['weights_bytes'] / 1e6:.2f} MB"
        lines.append(f"| `{name}` | {100 * one['exact_match']:.1f} % | {kl} | {top1} | {size} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/bench/recipes")))
