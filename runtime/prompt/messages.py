"""Messages in the form of the OpenAI API, checked and put into one shape.

Images stay what they were given as: nothing is opened, decoded or fetched here.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage

from ..errors import InputError, describe_problems
from .special_tokens import THINK_END, THINK_START

ROLES = ("system", "user", "assistant")

ImageSource = str | Path | bytes | PillowImage.Image
"""A path, a data URL, the bytes of an image file, or an open image."""

# Keys that clients send back with an answer; they say nothing to the chat template.
_INERT_KEYS = frozenset({"reasoning_content", "reasoning", "parsed"})
_INERT_PART_KEYS = frozenset({"prompt_cache_breakpoint"})
_MOST_PROBLEMS = 100
"""At so many the reading ends: a long list of bad messages costs no more than a short one."""
_SHOWN = 60
"""Characters of what a request says that a problem repeats."""
_MOST_KEYS = 10
_EMPTY: tuple[Any, ...] = (None, [], "", {})
# Only at the start, as the stream of an answer is read. `\Z`: an answer that ran out of tokens
# has no closing marker, and all of it is thinking.
_THINKING = re.compile(
    rf"\A\s*{re.escape(THINK_START)}.*?(?:{re.escape(THINK_END)}\s*|\Z)", flags=re.DOTALL
)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, kw_only=True)
class Text:
    """A piece of a message that is text."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Image:
    """A piece of a message that is an image."""

    source: ImageSource


Part = Text | Image


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    parts: tuple[Part, ...]
    name: str | None = None
    """Who speaks, for templates that write it."""

    def __post_init__(self) -> None:
        # The role is the one string that a template may read as its own text.
        if self.role not in ROLES:
            raise ValueError(f"unknown role {self.role!r}")


def parse_messages(messages: object, *, allow_paths: bool = True) -> tuple[Message, ...]:
    """Check messages in the OpenAI form and make `Message` objects of them.

    A part is `{"type": "text", "text": ...}`, `{"type": "image_url", "image_url": {"url": ...}}`,
    `{"type": "image", "image": ...}` or `{"type": "video", "video": [frame, ...]}`; a video is its
    frames as images. An empty key (None, [] or "") is taken as absent.

    Args:
        messages: a list of objects with `role` and `content`.
        allow_paths: whether a string may name a file of this machine. A server must say False:
            otherwise a request reads the server's files.

    Raises:
        InputError: some message is not of that form; all problems are named, up to a hundred,
            counted from 0.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InputError(f"messages: expected a list, found {type(messages).__name__}")
    if not messages:
        raise InputError("messages: the list is empty; at least one message is needed")
    parser = _Parser(allow_paths=allow_paths)
    parsed = tuple(parser.message(index, message) for index, message in enumerate(messages))
    if parser.problems:
        raise InputError(describe_problems("messages", parser.problems))
    return parsed


def images_of(messages: Sequence[Message]) -> list[Image]:
    """List the images of a conversation in their order."""
    return [part for message in messages for part in message.parts if isinstance(part, Image)]


def drop_thinking(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Remove the thinking from answers, which the chat template leaves in.

    From the last message too: a new answer is begun behind it, it is not continued.
    """
    return tuple(map(_drop_from, messages))


def _drop_from(message: Message) -> Message:
    if message.role != "assistant":
        return message
    parts = (
        Text(text=_THINKING.sub("", part.text)) if isinstance(part, Text) else part
        for part in message.parts
    )
    return replace(message, parts=tuple(parts))


class _Parser:
    """Makes messages and gathers problems; what a bad part becomes does not matter."""

    def __init__(self, *, allow_paths: bool) -> None:
        self._allow_paths = allow_paths
        self.problems: list[str] = []

    def message(self, index: int, message: object) -> Message:
        where = f"message {index}"
        if isinstance(message, Message):
            return message
        if not isinstance(message, Mapping):
            self._problem(where, f"expected an object, found {type(message).__name__}")
            return Message(role="user", parts=())
        role = message.get("role")
        if role not in ROLES:
            self._problem(where, f"unknown role {_short(role)}; use one of {', '.join(ROLES)}")
            role = ROLES[0]
        name = message.get("name")
        if name is not None and not isinstance(name, str):
            self._problem(where, f"name: expected text, found {type(name).__name__}")
        self._refuse_others(where, message, known={"role", "name", "content"} | _INERT_KEYS)
        return Message(role=role, parts=self._parts(where, message), name=name or None)

    def _parts(self, where: str, message: Mapping[str, Any]) -> tuple[Part, ...]:
        content = message.get("content")
        if isinstance(content, str):
            return (Text(text=content),)
        if not isinstance(content, Sequence) or isinstance(content, bytes):
            found = "which is missing" if content is None else f"found {type(content).__name__}"
            self._problem(where, f"content: expected text or a list of parts, {found}")
            return ()
        if not content:
            self._problem(where, "content: the list of parts is empty")
        parts: list[Part] = []
        for index, part in enumerate(content):
            parts.extend(self._part(f"{where}, part {index}", part))
        return tuple(parts)

    def _part(self, where: str, part: object) -> Iterable[Part]:
        if not isinstance(part, Mapping):
            self._problem(where, f"expected an object with a type, found {type(part).__name__}")
            return ()
        kind = part.get("type")
        readers = {
            "text": self._text,
            "image": self._image,
            "image_url": self._image_url,
            "video": self._video,
        }
        if not isinstance(kind, str) or kind not in readers:
            self._problem(where, f"unknown type {_short(kind)}; use one of {', '.join(readers)}")
            return ()
        self._refuse_others(where, part, known={"type", kind} | _INERT_PART_KEYS)
        return readers[kind](where, part[kind]) if kind in part else self._absent(where, kind)

    def _absent(self, where: str, kind: str) -> tuple[Part, ...]:
        self._problem(where, f"{kind}: is missing")
        return ()

    def _text(self, where: str, text: object) -> tuple[Part, ...]:
        if not isinstance(text, str):
            self._problem(where, f"text: expected text, found {type(text).__name__}")
            return ()
        return (Text(text=text),)

    def _image_url(self, where: str, value: object) -> tuple[Part, ...]:
        url = value.get("url") if isinstance(value, Mapping) else value
        if not isinstance(url, str):
            self._problem(where, f"image_url.url: expected text, found {type(url).__name__}")
            return ()
        return self._image(where, url)

    def _video(self, where: str, frames: object) -> tuple[Part, ...]:
        if isinstance(frames, str | bytes | Path) or not isinstance(frames, Sequence):
            self._problem(
                where, f"video: expected a list of frames as images, found {type(frames).__name__}"
            )
            return ()
        if not frames:
            self._problem(where, "video: there are no frames")
        parts: list[Part] = []
        for index, frame in enumerate(frames):
            parts.extend(self._image(f"{where}, frame {index}", frame))
        return tuple(parts)

    def _image(self, where: str, source: object) -> tuple[Part, ...]:
        if not isinstance(source, str | Path | bytes | PillowImage.Image):
            self._problem(
                where,
                "image: expected a path, a data URL, bytes or a PIL image, found "
                f"{type(source).__name__}",
            )
            return ()
        url = _URL.match(source) if isinstance(source, str) else None
        if url is not None:
            self._problem(
                where, f"{url[1][:_SHOWN]} addresses are not fetched; send the image as a data URL"
            )
        elif isinstance(source, str) and source[:5].lower() == "data:":
            pass
        elif isinstance(source, str | Path) and not self._allow_paths:
            self._problem(where, "files are not read here; send the image as a data URL")
        return (Image(source=source),)

    def _refuse_others(self, where: str, fields: Mapping[str, Any], *, known: set[str]) -> None:
        others = (key for key, value in fields.items() if key not in known and value not in _EMPTY)
        first = [str(key)[:_SHOWN] for key in islice(others, _MOST_KEYS + 1)]
        if len(first) > _MOST_KEYS:
            first[_MOST_KEYS] = "and more"
        if first:
            self._problem(where, f"unknown keys: {', '.join(first)}")

    def _problem(self, where: str, text: str) -> None:
        self.problems.append(f"{where}: {text}")
        if len(self.problems) >= _MOST_PROBLEMS:
            raise InputError(
                describe_problems("messages, not read on behind so many", self.problems)
            )


def _short(value: object) -> str:
    if isinstance(value, str):
        return repr(value[:_SHOWN])
    return repr(value) if value is None else f"of kind {type(value).__name__}"
