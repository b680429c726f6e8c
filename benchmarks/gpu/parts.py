"""The parts of the benchmark: each runs in a process of its own, so that it has the whole card.

A part yields what it adds to its name in the results, by section, as soon as it is known.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from engines.options import BuildOptions
from export.synthetic.configs import FULL_CONFIG
from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig
from runtime.engine.opening import open_engine
from runtime.errors import KimiVLError
from runtime.prompt.patches import ImageRule

from .card import Memory
from .ours import TEXT_TOKENS, Ours, run_once, with_limits
from .peer import Peer, Way, reason_to_leave_out
from .results import MEMORY, REPORTS
from .rows import DECODED, LEFT_OUT, Found, Wanted, Works, measure, reason_of, works_of
from .rtx import ask_rtx

LARGEST_SIDE = 128
"""Patches of a side of an image of 1792 x 1792 pixels."""
LARGEST_IMAGE = LARGEST_SIDE**2
TARGET = "cuda"
EVERY_ROW = "all"
"""The row of what keeps a part from all of its rows."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says."""

    artifact: Path
    wanted: Wanted
    prefill_chunk: int


Part = Callable[[Asked], Iterator[Found]]


def measure_one_slot(asked: Asked) -> Iterator[Found]:
    """Time batch 1 and prompts, with a cache for one slot as long as they need."""
    batches = tuple(batch for batch in asked.wanted.batches if batch == 1)
    return _time(asked, replace(asked.wanted, batches=batches, long_depths=()))


def measure_batches(asked: Asked) -> Iterator[Found]:
    """Time the other batches."""
    batches = tuple(batch for batch in asked.wanted.batches if batch != 1)
    return _time(asked, replace(asked.wanted, batches=batches, long_depths=(), prompts=()))


def measure_long_contexts(asked: Asked) -> Iterator[Found]:
    """Time one slot behind long contexts, but for those that are timed with batch 1."""
    wanted = asked.wanted
    known = wanted.depths if 1 in wanted.batches else ()
    depths = tuple(depth for depth in wanted.long_depths if depth not in known)
    return _time(asked, replace(wanted, batches=(), long_depths=depths, prompts=()))


def measure_image(asked: Asked) -> Iterator[Found]:
    """Time the first token behind the largest image that the artifact's own rule leaves as it is.

    A row is named after the pixels of a side.
    """
    artifact = Artifact.open(asked.artifact)
    rule = ImageRule.load(artifact.model_folder)
    side = min(LARGEST_SIDE, int(rule.in_token_limit**0.5) // rule.merge * rule.merge)
    largest = f"image_{LARGEST_SIDE * rule.patch_size}"
    if side < LARGEST_SIDE:
        reason = f"the artifact shrinks images to {rule.in_token_limit} patches"
        yield {LEFT_OUT: {largest: reason}}
    values = KimiVLConfig.load(artifact.model_folder / "config.json").vision.patch_values

    def works(ours: Ours) -> Works:
        return {f"image_{side * rule.patch_size}": partial(ours.first_token, side, values)}

    tokens = side**2 // rule.merge**2 + TEXT_TOKENS
    yield from _on_engine(asked, works, tokens=tokens, slots=1)


def _time(asked: Asked, wanted: Wanted) -> Iterator[Found]:
    """Time rows on an engine that is just large enough for them."""
    pairs = list(wanted.decodes())
    if pairs or wanted.prompts:
        tokens = [*(depth + DECODED for _, depth in pairs), *wanted.prompts]
        slots = max((batch for batch, _ in pairs), default=1)

        def works(ours: Ours) -> Works:
            return works_of(ours, wanted)

        yield from _on_engine(asked, works, tokens=max(tokens), slots=slots)


def _on_engine(
    asked: Asked, works: Callable[[Ours], Works], *, tokens: int, slots: int
) -> Iterator[Found]:
    """Open the engine with limits of its own, time it and tell of the card's memory."""
    artifact = Artifact.open(asked.artifact)
    config = KimiVLConfig.load(artifact.model_folder / "config.json")
    tokens = min(tokens, config.decoder.max_positions)
    rule = ImageRule.load(artifact.model_folder)
    chunk = min(asked.prefill_chunk, tokens)
    options = BuildOptions(max_tokens=tokens, max_slots=slots, prefill_chunk=chunk)
    memory = Memory.load()
    before = memory.used_bytes
    limited = with_limits(artifact, TARGET, options.limits(config, rule))
    engine = open_engine(limited, TARGET)
    yield {MEMORY: {"opened": memory.used_bytes - before}}
    ours = Ours(engine, vocab_size=artifact.manifest.embedding.shape[0])
    yield from measure(works(ours), asked.wanted.repeats, warm_up=run_once)
    yield {MEMORY: {"after": memory.used_bytes - before}}


def measure_peer(way: Way) -> Part:
    """Make the part that times transformers in one way."""

    def part(asked: Asked) -> Iterator[Found]:
        reason = reason_to_leave_out() or _other_sizes(Artifact.open(asked.artifact))
        if reason is not None:
            yield {LEFT_OUT: {EVERY_ROW: reason}}
            return
        peer = Peer(way, FULL_CONFIG["text_config"])
        works = works_of(peer, asked.wanted)
        yield from measure(works, asked.wanted.repeats, warm_up=peer.warm_up)

    return part


def _other_sizes(artifact: Artifact) -> str | None:
    """Say why an artifact is not to be compared with the peer; None if it is."""
    config = KimiVLConfig.load(artifact.model_folder / "config.json")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(FULL_CONFIG))
        sizes = KimiVLConfig.load(path).decoder
    if config.decoder == sizes and len(artifact.manifest.layers) == sizes.num_layers:
        return None
    return "the peer has the released sizes and all layers, the artifact has not"


def check_kernels(asked: Asked) -> Iterator[Found]:
    """Compare our kernels with float64, poisoned outputs and skewed routing; then time them.

    Raises:
        KimiVLError: a check failed.
    """
    from .. import kernels

    del asked
    reason = reason_to_leave_out()
    if reason is not None:
        yield {LEFT_OUT: {EVERY_ROW: reason}}
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "kernels.json"
        status = kernels.main(["--json", str(place)])
        report = json.loads(place.read_text()) if place.exists() else {}
    yield {REPORTS: report}
    if status:
        raise KimiVLError(f"kernels: checks failed: {report.get('failures', 'nothing ran')}")


def ask_tensorrt(asked: Asked) -> Iterator[Found]:
    """Open every target of TensorRT that the artifact has, and write down what is said."""
    artifact = Artifact.open(asked.artifact)
    plans = [name for name, one in artifact.manifest.targets.items() if one.plans is not None]
    if not plans:
        yield {LEFT_OUT: {EVERY_ROW: "the artifact has no target of TensorRT"}}
    for name in plans:
        try:
            open_engine(artifact, name)
            yield {REPORTS: {name: "opens"}}
        except (KimiVLError, RuntimeError) as error:
            yield {REPORTS: {name: f"{type(error).__name__}: {reason_of(error)}"}}


def ask_tensorrt_rtx(asked: Asked) -> Iterator[Found]:
    """Write down what TensorRT-RTX says of the card, whatever the artifact has."""
    del asked
    for step in ask_rtx():
        yield {REPORTS: step}


PARTS: dict[str, Part] = {
    "one_slot": measure_one_slot,
    "batches": measure_batches,
    "long_contexts": measure_long_contexts,
    "image": measure_image,
    "eager": measure_peer("eager"),
    "compiled": measure_peer("compiled"),
    "kernels": check_kernels,
    "tensorrt_rtx": ask_tensorrt_rtx,
    "tensorrt": ask_tensorrt,
}


def describe(asked: Asked) -> dict[str, Any]:
    """Say what is measured, for the results.

    Raises:
        ArtifactError: the folder is incomplete, altered, or not built for target `cuda`.
    """
    artifact = Artifact.open(asked.artifact)
    artifact.target(TARGET)
    manifest = artifact.manifest
    return {
        "recipe": manifest.recipe,
        "precision": dict(manifest.precision),
        "layers": len(manifest.layers),
        "embedding": list(manifest.embedding.shape),
        "prefill_chunk": asked.prefill_chunk,
    }
