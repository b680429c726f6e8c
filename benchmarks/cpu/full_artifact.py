"""The released model with random weights as an artifact for target `cpu`, in minutes.

Codes are random bytes and everything else is drawn, so nothing is calibrated: what is measured on
it does not depend on values, but for the router, which spreads tokens over experts as a real one.
The lowering and the weights' new layout are those of every build.

    python -m benchmarks.cpu.full_artifact out/bench/int4 --recipe int4-kv8
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from export.graph.weights_file import Values
    from export.recipe.recipe import Recipe
    from runtime.artifact.manifest import Manifest
    from runtime.config import KimiVLConfig

_BLOCK_BYTES = 1 << 24
_SPREAD = 0.02
"""Standard deviation of weights."""
_STEPS = {4: _SPREAD / 4.6, 8: _SPREAD / 74}
"""Scales that give random codes of these bits that spread."""


def write_full_artifact(
    folder: Path,
    recipe: "Recipe",
    *,
    max_tokens: int,
    layers: Sequence[int] | None = None,
    target: str = "cpu",
    in_token_limit: int | None = None,
) -> "Manifest":
    """Write neutral graphs with random weights, then build a target.

    Args:
        folder: gets the artifact; must not exist.
        recipe: any with int4 or int8 codes.
        max_tokens: capacity of the cache.
        layers: decoder layers; all, if left out.
        target: what is built.
        in_token_limit: patches above which an image is shrunk; the synthetic one, if left out.
    """
    from engines.build import build_target
    from engines.options import BuildOptions
    from runtime.artifact.manifest import MODEL_FOLDER, Manifest
    from runtime.artifact.records import FileRecord

    from ..hollow_graphs import HollowGraphs

    graphs = HollowGraphs(folder / MODEL_FOLDER, _write_random)
    (folder / MODEL_FOLDER / "synth.json").unlink()
    if in_token_limit is not None:
        _set_image_limit(folder / MODEL_FOLDER, in_token_limit)
    layers = tuple(range(graphs.num_layers) if layers is None else layers)
    names = graphs.write(recipe, layers, folder / "graphs")
    table = _write_table(folder, graphs.config)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    manifest = Manifest(
        source={"benchmark": "random codes"},
        recipe=recipe.name,
        precision=recipe.values(),
        layers=layers,
        taps=False,
        versions={},
        embedding=table,
        graphs={name: f"graphs/{name}.onnx" for name in names},
        files={path.relative_to(folder).as_posix(): FileRecord.of(path) for path in paths},
    )
    manifest.write(folder)
    return build_target(folder, target, BuildOptions(max_tokens=max_tokens))


def _set_image_limit(model_folder: Path, in_token_limit: int) -> None:
    from runtime.prompt.patches import RULE_FILE

    path = model_folder / RULE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "in_token_limit": in_token_limit}))


def _write_random(path: Path, values: "Sequence[Values]") -> None:
    """Fill a weights file: codes, their scales, norms of about 1, everything else of one spread."""
    from export.graph.weights_file import lay_out

    rng = np.random.default_rng([len(values), *path.name.encode()])
    places = lay_out(values)
    bits = {f"{one.name}.scale": one.dtype.bitwidth for one in values}
    with path.open("wb") as file:
        for one in values:
            place = places[one.name]
            file.seek(place.offset)
            for count in _parts(place.length):
                file.write(_drawn(rng, one, bits.get(one.name, 0), count))
        file.truncate(max(place.offset + place.length for place in places.values()))


def _parts(length: int) -> Iterator[int]:
    for start in range(0, length, _BLOCK_BYTES):
        yield min(_BLOCK_BYTES, length - start)


def _drawn(rng: np.random.Generator, one: "Values", scaled_bits: int, num_bytes: int) -> bytes:
    if one.dtype.bitwidth <= 8:
        return rng.bytes(num_bytes)
    count = num_bytes * 8 // one.dtype.bitwidth
    if scaled_bits:
        step = _STEPS[scaled_bits]
        return _stored(rng.uniform(0.7 * step, 1.3 * step, count), one.dtype)
    is_norm = "norm" in one.name and one.name.endswith("weight")
    drawn = rng.standard_normal(count, dtype=np.float32) * _SPREAD
    return _stored(drawn + 1 if is_norm else drawn, one.dtype)


def _stored(values: NDArray[np.floating], dtype: Any) -> bytes:  # noqa: ANN401  an ONNX type
    """Turn numbers into the bytes of an ONNX type."""
    return values.astype(dtype.numpy()).tobytes()


def _write_table(folder: Path, config: "KimiVLConfig") -> Any:  # noqa: ANN401  a table's record
    """Write the embedding table, int8 with a scale for each row."""
    from runtime.artifact.records import TableRecord

    rng = np.random.default_rng(7)
    rows, columns = config.decoder.vocab_size, config.decoder.width
    place, scales = "graphs/weights/embedding.bin", "graphs/weights/embedding_scales.bin"
    with (folder / place).open("wb") as file:
        for count in _parts(rows * columns):
            file.write(rng.integers(-127, 128, count, dtype=np.int8).tobytes())
    (folder / scales).write_bytes(np.full(rows, _STEPS[8], dtype=np.float32).tobytes())
    return TableRecord(path=place, dtype="int8", shape=(rows, columns), scales=scales)


def main() -> None:
    """Write one."""
    from export.recipe.reading import load_recipe

    parser = argparse.ArgumentParser(description="random weights, released sizes, target cpu")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="int4-kv8")
    parser.add_argument("--max-tokens", type=int, default=9216)
    parser.add_argument("--layers", type=int, help="only the first so many")
    given = parser.parse_args()
    layers = None if given.layers is None else range(given.layers)
    recipe = load_recipe(given.recipe)
    write_full_artifact(given.folder, recipe, max_tokens=given.max_tokens, layers=layers)
    sys.stderr.write(f"{given.folder}\n")


if __name__ == "__main__":
    main()
