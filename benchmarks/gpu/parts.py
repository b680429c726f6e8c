"""The parts of the benchmark: each runs in a process of its own, so that it has the whole card.

Every part gives what it adds to `results.json`.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engines.build import build_target
from engines.options import BuildOptions
from export.synthetic.configs import FULL_CONFIG
from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig
from runtime.engine.opening import open_engine
from runtime.errors import KimiVLError

from .card import Memory
from .ours import Ours
from .peer import Peer, Way, reason_to_leave_out
from .rows import DECODED, Measured, Wanted, measure

LARGEST_SIDE = 128
"""Patches of a side of an image of 1792 x 1792 pixels."""
TARGET = "cuda"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says."""

    artifact: Path
    wanted: Wanted
    prefill_chunk: int


def says(text: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(f"{text}\n")


def measure_ours(asked: Asked) -> dict[str, Any]:
    """Time batches, then long contexts and an image with one slot; look at the card's memory."""
    together = replace(asked.wanted, long_depths=())
    alone = replace(asked.wanted, batches=(1,), depths=(), repeats=asked.wanted.repeats)
    found = [
        _on_engine(asked, together, slots=max(together.batches), depth=max(together.depths)),
        _on_engine(asked, alone, slots=1, depth=max(alone.long_depths, default=LARGEST_SIDE**2)),
    ]
    measured = [one["measured"] for one in found]
    return {
        "samples": {"ours": {name: one for each in measured for name, one in each.samples.items()}},
        "left_out": {
            "ours": {name: one for each in measured for name, one in each.left_out.items()}
        },
        "memory_bytes": {
            "batches": found[0]["memory_bytes"],
            "long_contexts": found[1]["memory_bytes"],
        },
        "image_1792": found[1]["images"],
    }


def _on_engine(asked: Asked, wanted: Wanted, *, slots: int, depth: int) -> dict[str, Any]:
    """Note limits in the manifest, which builds nothing, open the engine and time it."""
    config = KimiVLConfig.load(asked.artifact / "model" / "config.json")
    largest = config.decoder.max_positions
    tokens = min(largest, max(depth + 2 * DECODED, LARGEST_SIDE**2 // 4 + 512))
    options = BuildOptions(
        max_tokens=tokens, max_slots=slots, prefill_chunk=min(asked.prefill_chunk, tokens)
    )
    build_target(asked.artifact, TARGET, options)
    memory = Memory.load()
    before = memory.used_bytes
    artifact = Artifact.open(asked.artifact)
    engine = open_engine(artifact, TARGET)
    ours = Ours(engine, vocab_size=artifact.manifest.embedding.shape[0])
    measured: Measured = measure(ours, wanted, says=says)
    side = min(LARGEST_SIDE, int(engine.limits.max_patches**0.5) // 2 * 2)
    images = []
    if slots == 1:
        times = range(asked.wanted.repeats + 1)  # the first one does not count
        images = [ours.first_token(side, config.vision.patch_values) for _ in times][1:]
    used = memory.used_bytes - before
    return {"measured": measured, "memory_bytes": used, "images": images}


def measure_peer(way: Way) -> Callable[[Asked], dict[str, Any]]:
    """Make the part that times transformers in one way."""

    def part(asked: Asked) -> dict[str, Any]:
        reason = reason_to_leave_out()
        if reason is not None:
            says(f"transformers {way} is left out: {reason}")
            return {"left_out": {way: {"all": reason}}}
        found = measure(Peer(way, FULL_CONFIG["text_config"]), asked.wanted, says=says)
        return {"samples": {way: found.samples}, "left_out": {way: found.left_out}}

    return part


def check_kernels(asked: Asked) -> dict[str, Any]:
    """Compare our kernels with float64, poisoned outputs and skewed routing; then time them."""
    from .. import kernels

    del asked
    reason = reason_to_leave_out()
    if reason is not None:
        return {"left_out": {"kernels": {"all": reason}}}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "kernels.json"
        kernels.main(["--json", str(place)])
        return {"kernels": json.loads(place.read_text())}


def ask_tensorrt(asked: Asked) -> dict[str, Any]:
    """Open every target of TensorRT that the artifact has, and write down what is said."""
    artifact = Artifact.open(asked.artifact)
    said = {}
    for name, record in artifact.manifest.targets.items():
        if record.plans is not None:
            try:
                open_engine(artifact, name)
                said[name] = "opens"
            except (KimiVLError, RuntimeError) as error:
                said[name] = f"{type(error).__name__}: {error}"
    if not said:
        return {"left_out": {"tensorrt": {"all": "the artifact has no target of TensorRT"}}}
    return {"tensorrt": said}


PARTS: dict[str, Callable[[Asked], dict[str, Any]]] = {
    "ours": measure_ours,
    "eager": measure_peer("eager"),
    "compiled": measure_peer("compiled"),
    "kernels": check_kernels,
    "tensorrt": ask_tensorrt,
}


def describe(asked: Asked) -> dict[str, Any]:
    """Say what was asked for, for the results."""
    manifest = Artifact.open(asked.artifact).manifest
    return {
        "recipe": manifest.recipe,
        "precision": dict(manifest.precision),
        "layers": len(manifest.layers),
        "prefill_chunk": asked.prefill_chunk,
        "wanted": asdict(asked.wanted),
    }
