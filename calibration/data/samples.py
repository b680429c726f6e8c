"""Conversations as the streaming pass takes them: ids, images, and which positions are judged."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.prompt.encoder import PromptEncoder
from runtime.prompt.messages import Image, Message, Text
from runtime.prompt.patches import PatchedImage

from .examples import Example, load_examples

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
DEFAULT_PROMPT = "Describe the picture."


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One conversation, teacher-forced."""

    ids: NDArray[np.int64]
    """(S,)"""
    is_image: NDArray[np.bool_]
    """(S,)"""
    images: tuple[PatchedImage, ...]
    judged: NDArray[np.int64]
    """Positions whose next token belongs to the reply; all text positions without a reply."""
    has_reply: bool
    turn: int = 1
    """Of the reply in its conversation."""


def load_conversations(source: str, prompt: str = DEFAULT_PROMPT) -> list[Example]:
    """Read a built-in set, a JSONL file, or a folder of images that are all asked the same.

    Raises:
        InputError: nothing there that can be used.
    """
    folder = Path(source)
    if not folder.is_dir():
        return load_examples(source, with_answers=False)
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(
            f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give a folder of "
            "images or a JSONL file of conversations"
        )
    return [
        Example(
            messages=(Message(role="user", parts=(Image(source=path), Text(text=prompt))),),
            answer="",
            kind="all",
        )
        for path in paths
    ]


def draw(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    """Shuffle with a seed and keep so many; all if `count` is None."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:count]


def encode(example: Example, prompts: PromptEncoder, max_tokens: int | None) -> Sample:
    """Encode one conversation with its reply.

    Raises:
        InputError: it is longer than `max_tokens`; None allows any length.
    """
    asked = prompts.encode(example.messages)
    ids, start = asked.ids, 0
    if example.reply:
        reply = Message(role="assistant", parts=(Text(text=example.reply),))
        whole = prompts.encode((*example.messages, reply), add_generation_prompt=False)
        ids, start = whole.ids, len(asked.ids) - 1
    if max_tokens is not None and len(ids) > max_tokens:
        raise InputError(
            f"a conversation of {len(ids)} tokens is longer than the limit of {max_tokens}; "
            "shorten it or leave it out"
        )
    is_image = ids == prompts.media_token_id
    positions = np.arange(start, len(ids) - 1)
    judged = positions[~is_image[positions + 1]]
    return Sample(
        ids=ids,
        is_image=is_image,
        images=asked.images,
        judged=judged,
        has_reply=bool(example.reply),
        turn=example.turn,
    )


def content_hash(examples: Sequence[Example]) -> str:
    """Hash conversations with the contents of their images, in order."""
    digest = hashlib.sha256()
    for example in examples:
        fields = {
            "answer": example.answer,
            "reply": example.reply,
            "messages": [_described(message) for message in example.messages],
        }
        digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.hexdigest()


def _described(message: Message) -> list[str]:
    described = [message.role]
    for part in message.parts:
        if isinstance(part, Text):
            described.append(part.text)
        else:
            source = part.source
            data = source.read_bytes() if isinstance(source, Path) else str(source).encode()
            described.append(hashlib.sha256(data).hexdigest())
    return described
