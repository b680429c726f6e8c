"""Our side: an artifact's target on its engine, and an image before a prompt."""

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from engines.measure.filled import FilledSlots
from runtime.artifact.folder import Artifact
from runtime.engine.protocol import Engine, IntArray
from runtime.generation.steps import prefill
from runtime.limits import Limits
from runtime.prompt.patches import PatchedImage

TEXT_TOKENS = 32
"""Behind the image of a prompt."""
_SEED = 11


def with_limits(artifact: Artifact, target: str, limits: Limits) -> Artifact:
    """Give an artifact on the same files whose target has other limits; the manifest stays.

    Raises:
        ArtifactError: the artifact was not built for the target.
    """
    record = replace(artifact.target(target), limits=limits)
    targets = {**artifact.manifest.targets, target: record}
    return replace(artifact, manifest=replace(artifact.manifest, targets=targets))


class Ours:
    """An open engine."""

    def __init__(self, engine: Engine, *, vocab_size: int) -> None:
        """Begin with empty slots."""
        self._engine, self._vocab_size = engine, vocab_size
        self._slots = FilledSlots(engine, vocab_size=vocab_size)

    def decode(self, depth: int, tokens: int, *, batch: int = 1) -> list[float]:
        """Decode random tokens behind `depth` others in some slots: seconds for each step."""
        return self._slots.decode(depth, tokens, batch=batch)

    def prefill(self, tokens: int) -> float:
        """Run a prompt of random tokens: seconds."""
        return self._slots.prefill(tokens)

    def first_token(self, side_patches: int, patch_values: int) -> dict[str, float]:
        """Answer an image of noise and a few words: seconds of the encoder, and to the first id.

        Args:
            side_patches: height and width of the image in patches.
            patch_values: numbers of a patch.
        """
        random = np.random.default_rng(_SEED)
        shape = (side_patches, side_patches, patch_values)
        image = PatchedImage(patches=random.standard_normal(shape, dtype=np.float32))
        ids: IntArray = random.integers(0, self._vocab_size, TEXT_TOKENS)
        engine = self._engine
        start = perf_counter()
        features = engine.encode(image)
        encoded = perf_counter()
        hidden = np.concatenate([features, engine.embed(ids)])
        prefill(engine.step_greedy, 0, hidden, 0, engine.limits.prefill_chunk)
        return {"encode_s": encoded - start, "first_token_s": perf_counter() - start}


def run_once(work: Callable[[], Any]) -> None:
    """Warm up: memory is reserved and steps are recorded at their first time."""
    work()
