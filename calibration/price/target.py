"""What a target of a quantised artifact loses, through its own engine, on the held-out samples."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig
from runtime.engine.opening import open_engine
from runtime.engine.protocol import Engine
from runtime.errors import InputError
from runtime.progress import Progress, silent
from runtime.prompt.encoder import PromptEncoder

from ..data.examples import Example
from ..data.samples import Sample, content_hash, encode
from .distance import Distance, Reference
from .figures import price

STAGE = "price"
REFERENCE_PATH = "calibration/reference.safetensors"


def price_target(
    artifact: Artifact, target: str, held_out: Sequence[Example], progress: Progress = silent
) -> dict[str, float]:
    """Run the held-out samples through a target, teacher-forced.

    Samples that are longer than the target's cache are left out.

    Args:
        artifact: opened, hence checked.
        target: which of its targets.
        held_out: the same conversations that judged the recipe.
        progress: told in samples.

    Returns:
        `kl_mean`, `kl_p99`, `top1`, `positions`, and `exact_match` with `exact_match_reference`.

    Raises:
        InputError: these are not the conversations that judged the recipe.
    """
    data = artifact.manifest.calibration["data"]
    if content_hash(held_out) != data["held_out"]:
        raise InputError("the held-out set is not the one that judged this recipe")
    config = KimiVLConfig.load(artifact.model_folder / "config.json")
    prompts = PromptEncoder.load(artifact.model_folder, config)
    samples = [encode(one, prompts, data["max_tokens"]) for one in held_out]
    references = _references(artifact, samples)
    engine = open_engine(artifact, target)
    kept = [i for i, one in enumerate(samples) if len(one.ids) <= engine.limits.max_tokens]
    distances = []
    for done, index in enumerate(kept):
        progress(STAGE, done, len(kept))
        logits = torch.from_numpy(_judged_logits(engine, samples[index]))
        distances.append(Distance.between(references[index], logits))
    progress(STAGE, len(kept), len(kept))
    found = price([samples[i] for i in kept], [references[i] for i in kept], distances)
    return {name: float(value) for name, value in found.items() if name != "samples"}


def _references(artifact: Artifact, samples: Sequence[Sample]) -> list[Reference]:
    whole = Reference.load(artifact.folder / REFERENCE_PATH)
    ends = np.cumsum([0, *(len(sample.judged) for sample in samples)])
    return [whole.part(start, end) for start, end in pairwise(ends)]


def _judged_logits(engine: Engine, sample: Sample) -> np.ndarray:
    hidden = engine.embed(sample.ids)
    if sample.images:
        hidden[sample.is_image] = np.concatenate([engine.encode(one) for one in sample.images])
    start = np.zeros(1, dtype=np.int64)
    return engine.step([0], hidden[None], start, sample.judged)
