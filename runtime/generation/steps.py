"""Tokens into slots: a prompt checked, embedded and prefilled in chunks; one token appended.

Plain functions over the engine protocol, for one request, for a loop over many slots, and for
scoring given text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
            f"{limits.max_input_tokens} and {limits.max_tokens} tokens with the answer; "
            f"{_way_out(size, prompt.max_positions)}"
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
    image_places(prompt)


def _way_out(size: int, max_positions: int | None) -> str:
    """Say what helps a prompt that is too long: no build does beyond what the model takes."""
    if max_positions is not None and size >= max_positions:
        return (
            f"shorten it, or use fewer or smaller images: the model takes at most {max_positions}"
        )
    return (
        "shorten it, use fewer or smaller images, or build with "
        f"--max-input-len {size} --max-kv-cache-capacity {size + 1} or more"
    )


def image_places(prompt: Prompt) -> tuple[IntArray, ...]:
    """Tell where the rows of each image stand in a prompt, (M,) rising positions each.

    Raises:
        InputError: there are not as many placeholder ids as image tokens.
    """
    sizes = [image.num_tokens for image in prompt.images]
    places = np.flatnonzero(prompt.ids == prompt.media_token_id)
    if places.size != sum(sizes):
        raise InputError(
            f"prompt: expected {sum(sizes)} placeholder ids for {len(sizes)} images, found "
            f"{places.size}; each image needs one for each of its image tokens"
        )
    return tuple(np.split(places, np.cumsum(sizes)[:-1])) if sizes else ()


def check_features(features: FloatArray, places: IntArray) -> None:
    """Refuse what an encoder made of an image if its rows (M, C) do not fill their places (M,).

    Raises:
        InputError: they do not.
    """
    if len(features) != len(places):
        raise InputError(
            f"prompt: expected {len(features)} placeholder ids for an image, found {len(places)}; "
            "each image needs one for each of its image tokens"
        )


def embed_prompt(engine: Engine, prompt: Prompt) -> FloatArray:
    """Encode the images and embed the ids of a prompt, (S, C).

    Raises:
        InputError: the images' rows are not as many as the placeholder ids.
    """
    places = image_places(prompt)
    features = dict(enumerate(engine.encode(image) for image in prompt.images))
    for index, rows in features.items():
        check_features(rows, places[index])
    return embed_span(engine, prompt.ids, places, features)


def embed_span(
    engine: Engine,
    ids: IntArray,
    places: Sequence[IntArray],
    features: Mapping[int, FloatArray],
    start: int = 0,
) -> FloatArray:
    """Embed the ids (S,) of a part of a prompt, and put image rows over those of placeholders.

    Args:
        engine: its table.
        ids: of the part.
        places: where the rows of each image stand in the whole prompt.
        features: rows (M, C) by the number of the image, of all images that reach into the part.
        start: position of the part in the prompt.

    Returns:
        Embedded tokens (S, C).
    """
    hidden = engine.embed(ids)
    is_copied = False
    for index, positions in enumerate(places):
        is_inside = (positions >= start) & (positions < start + len(ids))
        if is_inside.any():
            hidden = hidden if is_copied else hidden.copy()  # an engine may show its own table
            is_copied = True
            hidden[positions[is_inside] - start] = features[index][is_inside]
    return hidden


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


def run_chunks(
    step: Step, slot: int, hidden: FloatArray, start: int, chunk: int, *, rows: IntArray
) -> Iterator[NDArray[Any]]:
    """Append (S, C) in chunks; a step gives its rows for those `rows` of S that are in it."""
    for first in range(0, len(hidden), chunk):
        part = hidden[np.newaxis, first : first + chunk]  # (1, chunk, C), the last may be shorter
        inside = rows[(first <= rows) & (rows < first + chunk)] - first
        yield step([slot], part, np.array([start + first], dtype=np.int64), inside)


def decode_step(
    engine: Engine, step: Step, slots: Sequence[int], ids: Sequence[int], lengths: Sequence[int]
) -> NDArray[Any]:
    """Append one token to each of B slots by a step of the engine; give its B rows."""
    hidden = engine.embed(np.asarray(ids, dtype=np.int64))[:, np.newaxis]  # (B, 1, C)
    return step(slots, hidden, np.asarray(lengths, dtype=np.int64), np.arange(len(slots)))
