"""What a target of a quantised artifact loses, through its own engine, on the held-out samples."""

from collections.abc import Sequence

import numpy as np
import torch

from runtime.artifact.folder import Artifact
from runtime.engine.opening import open_engine
from runtime.engine.protocol import Engine
from runtime.progress import Progress, silent

from ..data.samples import Sample
from .distance import Distance, Reference
from .figures import by_turn, price
from .judged import Judged

STAGE = "price"
TURN_FIGURES = ("kl_mean", "top1", "exact_match")
"""Kept of each turn, beside what the calibration keeps of fp32."""


def price_target(
    artifact: Artifact, target: str, judged: Judged, progress: Progress = silent
) -> dict[str, float]:
    """Run the held-out samples through a target, teacher-forced, then turns of conversations.

    Samples that are longer than the target's cache are left out, and a turn with one of them as a
    whole.

    Args:
        artifact: opened, hence checked.
        target: which of its targets.
        judged: the conversations that judged the recipe.
        progress: told in samples.

    Returns:
        `kl_mean`, `kl_p99`, `top1`, `positions`, and `exact_match` with `exact_match_reference`;
        of turn N of conversations `turn_N_kl_mean`, `turn_N_top1`, `turn_N_exact_match`.
    """
    count, references = len(judged.samples), judged.references
    measure = _Measure(open_engine(artifact, target), progress, len(references))
    found = price(*measure.all(judged.samples, references[:count]))
    for name in ("samples", "replies"):
        found.pop(name)
    found |= _turn_figures(measure, judged.turns, references[count:])
    return {name: float(value) for name, value in found.items()}


class _Measure:
    """Runs samples through an engine."""

    def __init__(self, engine: Engine, progress: Progress, total: int) -> None:
        self._engine, self._progress, self._total = engine, progress, total
        self._done = 0

    def has_room(self, sample: Sample) -> bool:
        """Tell whether a sample fits the engine's cache."""
        return len(sample.ids) <= self._engine.limits.max_tokens

    def all(
        self, samples: Sequence[Sample], references: Sequence[Reference]
    ) -> tuple[list[Sample], list[Reference], list[Distance]]:
        """Give the samples that fit, what they are judged by, and how far they are from it."""
        kept: list[Sample] = []
        wanted: list[Reference] = []
        distances: list[Distance] = []
        for sample, reference in zip(samples, references, strict=True):
            self._progress(STAGE, self._done, self._total)
            self._done += 1
            if self.has_room(sample):
                logits = torch.from_numpy(_judged_logits(self._engine, sample))
                kept.append(sample)
                wanted.append(reference)
                distances.append(Distance.between(reference, logits))
        self._progress(STAGE, self._done, self._total)
        return kept, wanted, distances


def _turn_figures(
    measure: _Measure, turns: Sequence[Sample], references: Sequence[Reference]
) -> dict[str, float]:
    too_long = {sample.turn for sample in turns if not measure.has_room(sample)}
    summed = by_turn(*measure.all(turns, references))
    return {
        f"turn_{one['turn']}_{name}": one[name]
        for one in summed
        for name in TURN_FIGURES
        if name in one and one["turn"] not in too_long
    }


def _judged_logits(engine: Engine, sample: Sample) -> np.ndarray:
    hidden = engine.embed(sample.ids)
    if sample.images:
        hidden[sample.is_image] = np.concatenate([engine.encode(one) for one in sample.images])
    start = np.zeros(1, dtype=np.int64)
    return engine.step([0], hidden[None], start, sample.judged)
