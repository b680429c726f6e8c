"""The checkpoint's chat template, rendered so that only the template can write special tokens.

User text is marked before the template sees it (`marked_text.py`). In what the template itself
wrote, the names of special tokens become their ids; in user text they stay text. Ordinary text on
both sides of a seam is joined before it is encoded, so that a harmless conversation gives exactly
the ids of the reference, which renders and encodes one string.

A template that joins user text with its own and then trims the whole does not trim the user text.

Source: transformers `chat_template_utils.py` (the environment a template may expect).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import CheckpointError, InputError
from ..json_file import read_json_object
from .marked_text import Segment, TextVault, derive_from, plain
from .messages import Message, Text
from .tokenizer import Tokenizer
from .tokenizer_files import CONFIG_FILE

TEMPLATE_FILE = "chat_template.jinja"

_IMAGE = "image"
"""What stands for an image; templates only ask whether there is one."""
# Filters that would work on a marker instead of the text, unseen; no chat template needs them.
_BLIND_FILTERS = (
    *("e", "escape", "forceescape", "indent", "pprint", "striptags", "truncate"),
    *("urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"),
)
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
# What a template's own Python expressions may raise, beside Jinja's errors.
_TEMPLATE_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)


class _RefusedError(Exception):
    """The template called `raise_exception`."""


class ChatTemplate:
    """Turns messages into segments of text, and these into ids."""

    def __init__(
        self,
        source: str,
        *,
        tokens: Mapping[str, str] | None = None,
        where: str = "chat template",
    ) -> None:
        """Compile a template.

        Args:
            source: the Jinja text.
            tokens: special tokens under the names that a template may use, such as `bos_token`.
            where: the file it is from, for errors.

        Raises:
            CheckpointError: the template has a syntax error.
        """
        self._where = where
        self._tokens = dict(tokens or {})
        try:
            self._template = _compile(source)
        except (TemplateSyntaxError, RecursionError) as error:
            raise CheckpointError(f"{where}: not a valid chat template: {error}") from error

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate":
        """Read `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`.

        Raises:
            CheckpointError: there is neither, or the template has a syntax error.
        """
        path = folder / TEMPLATE_FILE
        config = folder / CONFIG_FILE
        fields = read_json_object(config) if config.exists() else {}
        source = _read_text(path)
        where = path if source is not None else config
        if source is None:
            source = fields.get("chat_template")
        if not isinstance(source, str):
            raise CheckpointError(
                f"{folder}: no chat template; expected {TEMPLATE_FILE}, or chat_template in "
                f"{CONFIG_FILE}"
            )
        return cls(source, tokens=_read_tokens(fields), where=str(where))

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool
    ) -> list[int]:
        """Render messages and turn them into ids.

        Args:
            messages: the conversation.
            tokenizer: the checkpoint's tokenizer.
            add_generation_prompt: whether to open the assistant's next answer.

        Raises:
            InputError: the template refuses the conversation.
            CheckpointError: the template fails, or alters or loses user text.
        """
        segments = self.render(messages, add_generation_prompt=add_generation_prompt)
        return encode_segments(segments, tokenizer)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[Segment]:
        """Render messages; the segments tell user text from template text.

        Raises:
            InputError: the template refuses the conversation.
            CheckpointError: the template fails, or alters or loses user text.
        """
        vault = TextVault()
        visible = [_show(message, vault) for message in messages]
        try:
            rendered = self._template.render(
                messages=visible,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._tokens,
            )
        except _RefusedError as error:
            reason = vault.reveal(str(error))
            raise InputError(f"the chat template refuses these messages: {reason}") from error
        except _TEMPLATE_FAULTS as error:
            reason = vault.reveal(str(error))
            raise CheckpointError(f"{self._where}: the chat template fails: {reason}") from error
        try:
            return vault.segments(rendered)
        except ValueError as error:
            raise CheckpointError(
                f"{self._where}: the chat template cannot be used: {error}"
            ) from error


def encode_segments(segments: Iterable[Segment], tokenizer: Tokenizer) -> list[int]:
    """Turn segments into ids; special tokens are found in template text only."""
    names = sorted(tokenizer.special_names, key=len, reverse=True)
    special = re.compile("|".join(re.escape(name) for name in names) or r"(?!)")
    ids: list[int] = []
    ordinary: list[str] = []

    def end_run() -> None:
        ids.extend(tokenizer.encode("".join(ordinary)))
        ordinary.clear()

    for segment in segments:
        start = 0
        for match in () if segment.is_user else special.finditer(segment.text):
            ordinary.append(segment.text[start : match.start()])
            end_run()
            special_id = tokenizer.special_id(match[0])
            assert special_id is not None  # the pattern holds the tokenizer's own names
            ids.append(special_id)
            start = match.end()
        ordinary.append(segment.text[start:])
    end_run()
    return ids


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as text: {error}") from error


def _read_tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in _NAMED_TOKENS:
        token = fields.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    for name in _BLIND_FILTERS:
        del environment.filters[name]
    environment.filters["tojson"] = _to_json
    environment.filters["replace"] = _replace
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


def _refuse(reason: object) -> None:
    raise _RefusedError(str(plain(reason)))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(
        plain(value),
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    # One user text in it makes all of it user text: nothing there may become a special token.
    return derive_from(value, text)


def _replace(value: object, old: object, new: object, count: int = -1) -> str:
    # Jinja's own filter would first turn marked text into a plain string, its marker.
    text = value if isinstance(value, str) else str(value)
    return text.replace(str(plain(old)), new if isinstance(new, str) else str(new), count)


def _show(message: Message, vault: TextVault) -> dict[str, Any]:
    """Make the object that the template sees.

    One text alone is shown as a string, which every template takes; more parts as a list.
    """
    parts = [
        {"type": "text", "text": vault.mark(part.text, required=True)}
        if isinstance(part, Text)
        else {"type": "image", "image": _IMAGE}
        for part in message.parts
    ]
    is_one_text = len(message.parts) == 1 and isinstance(message.parts[0], Text)
    shown: dict[str, Any] = {
        "role": message.role,
        "content": parts[0]["text"] if is_one_text else parts,
    }
    if message.name is not None:
        shown["name"] = vault.mark(message.name, required=False)
    return shown
