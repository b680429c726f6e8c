"""Plans on the card they were built for: do they run, do they match the CPU, how fast are they.

The truth is the same artifact's target `cpu`, which `verify` holds to the torch modules.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from runtime.artifact.folder import Artifact
from runtime.config import KimiVLConfig
from runtime.engine.opening import open_engine
from runtime.engine.protocol import Engine, FloatArray, IntArray
from runtime.limits import Limits
from runtime.progress import Progress, silent
from runtime.prompt.patches import Grid, PatchedImage

from .digits import six_digits
from .parity import relative_error
from .tolerances import ON_DEVICE

STAGE = "on device"
TRUTH = "cpu"
NUM_PROMPT = 96
NUM_NEW = 32
NUM_TIMED = 20
_SEED = 4077
_SIDE = 24
"""Patches of a side of the image, if the limits allow it."""


class OnDevice(NamedTuple):
    """What a card made of a target's plans."""

    level: str
    """`runs` or `matches`; speed was measured in both cases."""
    figures: dict[str, float]


def measure_on_device(
    artifact: Artifact,
    target: str,
    progress: Progress = silent,
    *,
    open_target: Callable[[Artifact, str], Engine] = open_engine,
) -> OnDevice:
    """Run a target's plans beside the CPU's graphs, and time them.

    Args:
        artifact: opened; has target `cpu`, too.
        target: of TensorRT.
        progress: told in steps.
        open_target: opens the plans.

    Returns:
        Errors are max|a - b| / max|b|; `top1` and `greedy` are shares of equal tokens; times are
        medians in milliseconds.

    Raises:
        ArtifactError: the artifact was not built for one of the two.
        UnsupportedError: no such card is here.
    """
    config = KimiVLConfig.load(artifact.model_folder / "config.json")
    truth, engine = open_target(artifact, TRUTH), open_target(artifact, target)
    progress(STAGE, 0, 3)
    image, ids = _image(config, engine.limits), _ids(config, engine.limits)
    figures: dict[str, float] = {
        "vision_error": relative_error(engine.encode(image), truth.encode(image)),
        **_compare_text(engine, truth, ids),
    }
    progress(STAGE, 1, 3)
    figures |= _compare_greedy(engine, truth, ids)
    progress(STAGE, 2, 3)
    figures |= _times(engine, image, ids)
    progress(STAGE, 3, 3)
    is_close = max(figures["vision_error"], figures["logits_error"]) <= ON_DEVICE
    rounded = {name: six_digits(float(value)) for name, value in figures.items()}
    return OnDevice("matches" if is_close else "runs", rounded)


def _image(config: KimiVLConfig, limits: Limits) -> PatchedImage:
    """Make an oblong image of noise."""
    side = min(_SIDE, int(limits.max_patches**0.5) // 2 * 2)
    grid = Grid(side, max(2, side // 4 * 2))
    shape = (grid.h, grid.w, config.vision.patch_values)
    values = np.random.default_rng(_SEED).standard_normal(shape, dtype=np.float32)
    return PatchedImage(patches=values)


def _ids(config: KimiVLConfig, limits: Limits) -> IntArray:
    """Draw a prompt that leaves room for the answer."""
    length = max(1, min(NUM_PROMPT, limits.max_input_tokens, limits.max_tokens - NUM_NEW - 1))
    return np.random.default_rng(_SEED).integers(0, config.decoder.vocab_size, length)


def _step(engine: Engine, ids: IntArray, length: int) -> FloatArray:
    """Append ids to slot 0; logits of all of them."""
    start = np.array([length], dtype=np.int64)
    return engine.step([0], engine.embed(ids)[None], start, np.arange(len(ids)))


def _compare_text(engine: Engine, truth: Engine, ids: IntArray) -> dict[str, float]:
    found, expected = (_step(one, ids, 0) for one in (engine, truth))
    same = found.argmax(axis=1) == expected.argmax(axis=1)
    return {"logits_error": relative_error(found, expected), "top1": float(same.mean())}


def _compare_greedy(engine: Engine, truth: Engine, ids: IntArray) -> dict[str, float]:
    """Let both answer, each from its own tokens."""
    answers = [_greedy(one, ids) for one in (engine, truth)]
    same = [a == b for a, b in zip(*answers, strict=True)]
    return {"greedy": sum(same) / len(same)}


def _greedy(engine: Engine, ids: IntArray) -> list[int]:
    count = min(NUM_NEW, engine.limits.max_tokens - len(ids))
    tokens = [int(_step(engine, ids, 0)[-1].argmax())]
    while len(tokens) < count:
        place = len(ids) + len(tokens) - 1
        tokens.append(int(_step(engine, np.array(tokens[-1:]), place)[-1].argmax()))
    return tokens


def _times(engine: Engine, image: PatchedImage, ids: IntArray) -> dict[str, float]:
    place = min(len(ids), engine.limits.max_tokens - 1)
    return {
        "image_ms": _median_ms(lambda: engine.encode(image)),
        "prompt_tokens_per_s": len(ids) / _median_ms(lambda: _step(engine, ids, 0)) * 1000,
        "token_ms": _median_ms(lambda: _step(engine, ids[:1], place)),
    }


def _median_ms(work: Callable[[], object]) -> float:
    """Time some runs, after three that are not counted."""
    times = []
    for _ in range(3 + NUM_TIMED):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[3:])
