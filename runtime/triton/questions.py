"""From the tensors of one request to a request of ours.

Reading (`read_tensors`) takes copies and has to be done while the server holds the request;
understanding (`Questions.request`) decodes images and may take long, so it is another thread's.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from ..errors import CapacityError, InputError, describe_problems
from ..generation.constraint import Grammar
from ..generation.request import Request
from ..prompt.messages import Image, Message, Text, drop_thinking, parse_messages
from ..prompt.patches import ImageRule, PatchedImage
from ..session import Session
from . import tensors

Values = Mapping[str, Any]
"""What was sent, by the names of inputs: one value, or a list for inputs of any length."""

_DATA_URL = re.compile(rb"\s*data:", flags=re.IGNORECASE)


def read_tensors(backend: ModuleType, request: Any) -> Values:  # noqa: ANN401  the server's class
    """Copy the inputs that were sent; empty ones count as absent.

    Args:
        backend: the module `triton_python_backend_utils`.
        request: an `InferenceRequest`.
    """
    found: dict[str, Any] = {}
    for tensor in tensors.INPUTS:
        given = backend.get_input_tensor_by_name(request, tensor.name)
        values = [] if given is None else np.asarray(given.as_numpy()).ravel().tolist()
        if values:
            found[tensor.name] = values if tensor.dims == tensors.MANY else values[0]
    return found


class Questions:
    """Makes requests for one session; all methods may be called from any thread."""

    def __init__(self, session: Session, max_images: int) -> None:
        """Keep the session, whose defaults hold for what a request leaves out.

        Args:
            session: opened.
            max_images: most images of one request.
        """
        self._session, self._max_images = session, max_images
        self._lock = Lock()
        self._compiler: Any = None

    def messages(self, values: Values) -> Sequence[Message]:
        """Read the conversation; its images are counted, not decoded.

        Raises:
            InputError: a message is wrong, or contradicts another input.
            CapacityError: there are too many images.
        """
        found = _messages(values)
        count = num_images(found)
        if count > self._max_images:
            raise CapacityError(
                f"{count} images are over the model's limit of {self._max_images} (max_images)"
            )
        return found

    def request(
        self, values: Values, messages: Sequence[Message], look: Callable[[], None]
    ) -> Request:
        """Understand what was sent.

        Args:
            values: all of it.
            messages: what `messages` made of it.
            look: called between images; what it raises ends the work.

        Raises:
            InputError: a value is wrong, contradicts another, or an image cannot be used.
            CapacityError: an image is too large.
            UnsupportedError: a grammar, and the library for it is not installed.
        """
        encoder = self._session.encoder
        rule = _WatchedRule(**vars(encoder.rule), look=look)
        prompt = replace(encoder, rule=rule).encode(messages)
        default = self._session.request(prompt)
        sampling = {one.name: values[one.name] for one in tensors.SAMPLING if one.name in values}
        limits = {one.name: values[one.name] for one in tensors.LIMITS if one.name in values}
        if tensors.STOP.name in values:
            limits["stop"] = tuple(_text(tensors.STOP, one) for one in values[tensors.STOP.name])
        return self._session.request(
            prompt,
            replace(default.sampling, **sampling),
            replace(default.limits, **limits),
            grammar=self._grammar(values),
        )

    def _grammar(self, values: Values) -> Grammar | None:
        given = [one for one in tensors.GRAMMARS if one.name in values]
        if not given:
            return None
        if len(given) > 1:
            names = ", ".join(one.name for one in given)
            raise InputError(f"{names}: an answer can follow one of them, not several")
        text = _text(given[0], values[given[0].name])
        compiler = self._ready_compiler()
        if given[0].name == "json_schema":
            return compiler.from_json_schema(_json(given[0], text))  # type: ignore[no-any-return]  # lazy
        if given[0].name == "regex":
            return compiler.from_regex(text)  # type: ignore[no-any-return]  # imported lazily
        return compiler.from_lark(text)  # type: ignore[no-any-return]  # imported lazily

    def _ready_compiler(self) -> Any:  # noqa: ANN401  imported where it is needed
        from ..generation.grammar import GrammarCompiler

        with self._lock:
            if self._compiler is None:
                session = self._session
                self._compiler = GrammarCompiler(session.tokenizer, session.stop_ids)
            return self._compiler


@dataclass(frozen=True, kw_only=True)
class _WatchedRule(ImageRule):
    """Looks up from its work at each image, which may take a second."""

    look: Callable[[], None]

    def patchify(self, image: PillowImage.Image) -> PatchedImage:
        self.look()
        return super().patchify(image)


def num_images(messages: Sequence[Message]) -> int:
    """Count the images of a conversation."""
    return sum(isinstance(part, Image) for message in messages for part in message.parts)


def _messages(values: Values) -> Sequence[Message]:
    """Make the conversation out of `messages`, or of `prompt` and `system`; images included."""
    images = [
        image_source(index, one) for index, one in enumerate(values.get(tensors.IMAGES.name, ()))
    ]
    has_messages = tensors.MESSAGES.name in values
    if has_messages == (tensors.PROMPT.name in values):
        raise InputError("expected either `messages` or `prompt`, found " + _both(has_messages))
    if not has_messages:
        return _one_turn(values, images)
    if tensors.SYSTEM.name in values:
        raise InputError("system: belongs to `prompt`; put a system message into `messages`")
    text = _text(tensors.MESSAGES, values[tensors.MESSAGES.name])
    conversation = _fill_images(_json(tensors.MESSAGES, text), images)
    return drop_thinking(parse_messages(conversation, allow_paths=False))


def _one_turn(values: Values, images: Sequence[bytes | str]) -> Sequence[Message]:
    question = Text(text=_text(tensors.PROMPT, values[tensors.PROMPT.name]))
    shown = [Image(source=one) for one in images]
    user = Message(role="user", parts=(*shown, question))
    if tensors.SYSTEM.name not in values:
        return (user,)
    text = _text(tensors.SYSTEM, values[tensors.SYSTEM.name])
    return (Message(role="system", parts=(Text(text=text),)), user)


def _fill_images(messages: Any, images: Sequence[bytes | str]) -> Any:  # noqa: ANN401  any JSON
    """Put the images of the input `images` in the place of parts `{"type": "image"}`, in order."""
    places = [part for part in _parts(messages) if part == {"type": "image"}]
    if len(places) != len(images):
        raise InputError(
            f"images: {len(images)} were sent, and the messages have {len(places)} parts "
            '{"type": "image"} to take them'
        )
    for part, image in zip(places, images, strict=True):
        part["image"] = image
    return messages


def _parts(messages: object) -> list[Any]:
    """List the parts of all messages that have a list of them; `parse_messages` checks the rest."""
    found: list[Any] = []
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        found += content if isinstance(content, list) else []
    return found


def image_source(index: int, content: bytes) -> bytes | str:
    """Take an image file, or a data URL, which JSON can carry.

    Raises:
        InputError: a data URL is not ASCII.
    """
    if not _DATA_URL.match(content[:64]):
        return content
    try:
        return content.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"images: image {index}: the data URL is not ASCII") from error


def _text(tensor: tensors.Tensor, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{tensor.name}: not UTF-8 at byte {error.start}") from error


def _json(tensor: tensors.Tensor, text: str) -> Any:  # noqa: ANN401  any JSON value
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(describe_problems(tensor.name, [f"not JSON: {error}"])) from error


def _both(has_messages: bool) -> str:
    return "both" if has_messages else "neither"
