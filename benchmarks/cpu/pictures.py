"""Pictures on this CPU at the released sizes: time and memory of tower and projector.

    python -m benchmarks.cpu.pictures [FOLDER]

FOLDER, out/bench/pictures if it is left out, gets an artifact for each number format, 5 GB in all.
Takes 6 GiB of memory and twenty minutes: the largest picture is 16,384 patches, each of which
sees all others. The limit on patches is that of Thinking-2506, the largest of the releases.

A picture is encoded in a process of its own, once unmeasured where that is not too long. Memory is
anonymous memory at the peak above what the open engine has. None of it may grow with the square of
the patches: exits with 1 if it is more than 150 kB for a patch, of which the scores of one head
alone, 16,384 for each patch, would be 65 kB, and those of all heads 1 MB.

Adds `pictures` to `benchmarks/cpu/results.json`.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

from engines.measure.disturbance import DisturbanceWatch
from engines.measure.images import ImageSize, random_image
from engines.measure.memory import MemoryWatch, resident

from ..record import conditions
from .results import merge_results

FOLDER = Path("out/bench/pictures")
IN_TOKEN_LIMIT = 16_384
WARM_UP_TO = 4096
"""Patches of a picture that is also encoded unmeasured, and three times."""
ALLOWED_PATCH_BYTES = 150_000
FORMS = ("bf16", "int8")
"""Of the weights in the files. On this target bf16 is widened to fp32 at load, and so is fp32."""


SIZES = (ImageSize(448, 448), ImageSize(1920, 1080), ImageSize(1792, 1792))
_TOWER = ("vision", "projector")


def main() -> int:
    """Measure and add the results; 1 if a picture takes more memory than is allowed."""
    parser = argparse.ArgumentParser(description="pictures at the released sizes")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--forms", nargs="*", default=FORMS, choices=FORMS)
    parser.add_argument("--sizes", nargs="*", default=SIZES, type=ImageSize.from_text)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for form in given.forms:
        folder = given.folder / form
        if not folder.exists():
            write_artifact(folder, form)
        for size in given.sizes:
            name = f"{form}_{size}"
            found[name] = _in_own_process(folder, size, given.threads)
            sys.stderr.write(f"{name}: {found[name]}\n")
    packages = ("onnxruntime", "numpy", "pillow")
    record = {"conditions": conditions(packages, threads=given.threads), **found}
    merge_results({"pictures": record})
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return int(any(one["peak_patch_bytes"] > ALLOWED_PATCH_BYTES for one in found.values()))


def write_artifact(folder: Path, form: str) -> None:
    """Write tower, projector, head and the dense layer with random weights, for target `cpu`.

    Args:
        folder: gets them; must not exist.
        form: `bf16` or `int8`, of tower and projector.
    """
    from export.recipe.reading import load_recipe

    from .full_artifact import write_full_artifact

    recipe = load_recipe(str(Path(__file__).with_name("int4-head4-kv8.toml")))
    if form == "bf16":
        kept = {name: one for name, one in recipe.parts.items() if name not in _TOWER}
        recipe = replace(recipe, name=f"{recipe.name}-tower-bf16", parts=kept)
    write_full_artifact(folder, recipe, max_tokens=1024, layers=(0,))
    _allow_large_pictures(folder)


def _allow_large_pictures(folder: Path) -> None:
    """Raise the checkpoint's limit on patches and build again, which changes the manifest alone."""
    from engines.build import build_target
    from engines.options import BuildOptions
    from runtime.artifact.manifest import MODEL_FOLDER, Manifest
    from runtime.artifact.records import FileRecord
    from runtime.prompt.patches import RULE_FILE

    path = folder / MODEL_FOLDER / RULE_FILE
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "in_token_limit": IN_TOKEN_LIMIT}))
    manifest = Manifest.read(folder)
    record = {f"{MODEL_FOLDER}/{RULE_FILE}": FileRecord.of(path)}
    replace(manifest, files={**manifest.files, **record}).write(folder)
    build_target(folder, "cpu", BuildOptions(max_tokens=1024))


def _in_own_process(folder: Path, size: ImageSize, threads: int) -> Mapping[str, Any]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(encode, folder, size, threads).result()


def encode(folder: Path, size: ImageSize, threads: int) -> Mapping[str, Any]:
    """Open an engine and encode a random picture while memory is watched."""
    from runtime.artifact.folder import Artifact
    from runtime.engine.cpu.engine import CpuEngine
    from runtime.prompt.patches import ImageRule

    artifact = Artifact.open(folder)
    engine = CpuEngine(artifact, num_threads=threads, weights="packed")
    start = perf_counter()
    image = ImageRule.load(artifact.model_folder).patchify(random_image(size))
    patch_s = perf_counter() - start
    patches = image.grid.h * image.grid.w
    idle_bytes = resident().anonymous
    others, seconds = DisturbanceWatch(), []
    with MemoryWatch() as memory, others.timed():
        for _ in range(4 if patches <= WARM_UP_TO else 1):
            start = perf_counter()
            engine.encode(image)
            seconds.append(perf_counter() - start)
    peak_bytes = memory.peak.anonymous - idle_bytes
    return {
        "patches": patches,
        "image_tokens": image.num_tokens,
        "patch_s": patch_s,
        "samples_s": seconds[1:] or seconds,
        "idle_bytes": idle_bytes,
        "peak_bytes": peak_bytes,
        "peak_patch_bytes": round(peak_bytes / patches),
        "disturbance": others.total.fields(),
    }


if __name__ == "__main__":
    sys.exit(main())
