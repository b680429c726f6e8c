"""Tokens into slots: a prompt checked, embedded and prefilled in chunks; one token appended.

Plain functions over the engine protocol, for one request, for a loop over many slots, and for
scoring given text.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.protocol import Engine, FloatArray, IntArray
from ..errors import CapacityError, InputError, describe_problems
from ..limits import Limits
from ..prompt.encoder import Prompt

Step = Callable[[Sequence[int], FloatArray, IntArray, IntArray], NDArray[Any]]
"""`Engine.step` or `Engine.step_greedy`: logits (N, V), or the ids of the highest ones (N,)."""


def check_prompt(prompt: Prompt, limits: Limits) -> None:
    """Refuse what cannot be answered, before anything is computed.

    Raises:
        CapacityError: the prompt is too long or leaves no room for a new token, or an image has
            too many patches.
        InputError: the prompt is empty, or its images and placeholders do not match.
    """
    size = prompt.ids.size
    if size == 0:
        raise InputError("prompt: it has no tokens; at least one is needed")
    if size > min(limits.max_input_tokens, limits.max_tokens - 1):
        raise CapacityError(
            f"prompt: {size} tokens; the engine takes prompts of at most "
            f"{limits.max_input_tokens} and {limits.max_tokens} tokens with the answer; shorten "
            "it, use fewer or smaller images, or build with "
            f"--max-input-len {size} --max-kv-cache-capacity {size + 1} or more"
        )
    problems = [
        f"image {index} has {h} x {w} = {h * w} patches"
        for index, (h, w) in enumerate(image.grid for image in prompt.images)
        if h * w > limits.max_patches
    ]
    if problems:
        raise CapacityError(
            f"{describe_problems('prompt', problems)}; the engine takes images of at most "
            f"{limits.max_patches}: shrink them, or build with a larger --max-image-tokens"
        )
    _check_places(prompt, sum(image.num_tokens for image in prompt.images))


def embed_prompt(engine: Engine, prompt: Prompt) -> FloatArray:
    """Encode the images and embed the ids of a prompt, (S, C).

    Raises:
        InputError: the images' rows are not as many as the placeholder ids.
    """
    features = [engine.encode(image) for image in prompt.images]
    return place_images(engine.embed(prompt.ids), prompt, features)


def prefill(step: Step, slot: int, hidden: FloatArray, start: int, chunk: int) -> NDArray[Any]:
    """Append embedded tokens (S, C) behind `start`; give the step's one row, of the last one."""
    *_, found = run_chunks(step, slot, hidden, start, chunk, rows=np.array([len(hidden) - 1]))
    return found


def prefill_logits(
    engine: Engine, slot: int, hidden: FloatArray, start: int, chunk: int
) -> FloatArray:
    """Append embedded tokens (S, C) behind `start` and return all their logits (S, V)."""
    rows = np.arange(len(hidden))
    return np.concatenate(list(run_chunks(engine.step, slot, hidden, start, chunk, rows=rows)))


def decode_step(
    engine: Engine, step: Step, slots: Sequence[int], ids: Sequence[int], lengths: Sequence[int]
) -> NDArray[Any]:
    """Append one token to each of B slots by a step of the engine; give its B rows."""
    hidden = engine.embed(np.asarray(ids, dtype=np.int64))[:, np.newaxis]  # (B, 1, C)
    return step(slots, hidden, np.asarray(lengths, dtype=np.int64), np.arange(len(slots)))


def run_chunks(
    step: Step, slot: int, hidden: FloatArray, start: int, chunk: int, *, rows: IntArray
) -> Iterator[NDArray[Any]]:
    """Append (S, C) in chunks; a step gives its rows for those `rows` of S that are in it."""
    for first in range(0, len(hidden), chunk):
        part = hidden[np.newaxis, first : first + chunk]  # (1, chunk, C), the last may be shorter
        inside = rows[(first <= rows) & (rows < first + chunk)] - first
        yield step([slot], part, np.array([start + first], dtype=np.int64), inside)


def place_images(hidden: FloatArray, prompt: Prompt, features: Sequence[FloatArray]) -> FloatArray:
    """Put image rows (M, C) in the place of the placeholders' rows of (S, C), in order."""
    _check_places(prompt, sum(map(len, features)))
    if features:
        hidden = hidden.copy()
        hidden[prompt.ids == prompt.media_token_id] = np.concatenate(features)
    return hidden


def _check_places(prompt: Prompt, num_rows: int) -> None:
    num_places = int(np.count_nonzero(prompt.ids == prompt.media_token_id))
    if num_places != num_rows:
        raise InputError(
            f"prompt: expected {num_rows} placeholder ids for {len(prompt.images)} images, found "
            f"{num_places}; each image needs one for each of its image tokens"
        )
