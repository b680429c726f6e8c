"""What an endpoint is asked: conversations as JSON in OpenAI's form, pictures inside."""

import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage

from runtime.errors import InputError
from runtime.prompt.messages import Image, Message, Text

_KINDS = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpeg",
    b"RIFF": "webp",
    b"BM": "bmp",
    b"GIF8": "gif",
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One conversation."""

    messages: Sequence[dict[str, Any]]
    """In OpenAI's form; images as data URLs."""
    num_images: int

    @classmethod
    def of(cls, messages: Sequence[Message]) -> "Question":
        """Read the pictures of a conversation.

        Raises:
            InputError: one cannot be read, or is none of a known format.
        """
        parts = [part for message in messages for part in message.parts]
        return cls(
            messages=[_fields(message) for message in messages],
            num_images=sum(isinstance(part, Image) for part in parts),
        )

    def without_images(self) -> "Question":
        """Leave the pictures out; the text stays as it is."""
        return Question(messages=[_text_alone(one) for one in self.messages], num_images=0)


def draw_questions(
    questions: Sequence[Question], count: int, *, text_share: float = 0.0, seed: int = 0
) -> list[Question]:
    """Take so many: all in a random order, then all in another one.

    Args:
        questions: at least one.
        count: how many.
        text_share: of how many, on average, the pictures are left out.
        seed: equal seeds draw equally.
    """
    generator, drawn = random.Random(seed), list[Question]()
    while len(drawn) < count:
        drawn += generator.sample(questions, len(questions))
    return [
        one.without_images() if generator.random() < text_share else one for one in drawn[:count]
    ]


def _fields(message: Message) -> dict[str, Any]:
    if all(isinstance(part, Text) for part in message.parts):
        text = "".join(part.text for part in message.parts if isinstance(part, Text))
        return {"role": message.role, "content": text}
    parts: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, Text):
            parts.append({"type": "text", "text": part.text})
        else:
            parts.append({"type": "image_url", "image_url": {"url": _data_url(part.source)}})
    return {"role": message.role, "content": parts}


def _text_alone(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return message
    return message | {"content": "".join(part.get("text", "") for part in content)}


def _data_url(source: str | Path | bytes | PillowImage.Image) -> str:
    if isinstance(source, str) and source.startswith("data:"):
        return source
    if isinstance(source, PillowImage.Image):
        raise InputError("an open image cannot be sent; give its path")
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"{source!s}: cannot be read: {error.strerror}") from error
    kinds = [kind for start, kind in _KINDS.items() if content.startswith(start)]
    if not kinds:
        raise InputError(f"{source!s}: not an image of {', '.join(_KINDS.values())}")
    return f"data:image/{kinds[0]};base64,{base64.b64encode(content).decode()}"
