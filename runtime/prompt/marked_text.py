"""User text that goes through a chat template without being read by it as template text.

A template sees a `str` whose characters are a random marker, so that what it writes can be told
from what the user wrote. Questions (equality, length, `in`) are answered by the real text; methods
that give strings (`strip`, `split`, `upper`, ...) work on the real text and give marked text again.

    user text ──mark──► marker ──template──► rendered ──segments──► template text, user text, ...
"""

import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, SupportsIndex

# Private-use characters: no blank, no quote, no case, nothing that a template would look for.
_OPEN = "\ue000"
_CLOSE = "\ue001"


class Segment(NamedTuple):
    """A stretch of a rendered prompt."""

    text: str
    is_user: bool
    """Whether a user wrote it; if so, special tokens in it are only text."""


class TextVault:
    """Hands out markers for user texts and puts the texts back."""

    def __init__(self) -> None:
        """Start empty, with markers that nobody can foresee."""
        # Letters of both cases: a template that changes the case of joined text breaks the marker.
        self._nonce = f"Mk{secrets.token_hex(8)}"
        self._marker = re.compile(f"{_OPEN}{self._nonce}x([0-9]+){_CLOSE}")
        self._texts: list[str] = []
        self._origins: list[frozenset[int]] = []
        self._required: set[int] = set()

    def mark(self, text: str, *, required: bool) -> "MarkedText":
        """Take a text in.

        Args:
            text: what the user wrote.
            required: whether the template must write it, whole or in part.
        """
        index = len(self._texts)
        if required and text.strip():
            self._required.add(index)
        return self._make(text, origins=frozenset({index}))

    def segments(self, rendered: str) -> list[Segment]:
        """Split what a template wrote and put the texts back.

        Raises:
            ValueError: a marker was altered, or a required text is missing.
        """
        pieces = self._marker.split(rendered)
        segments = []
        seen: set[int] = set()
        for position, piece in enumerate(pieces):
            if position % 2:
                index = int(piece)
                seen |= self._origins[index]
                segments.append(Segment(self._texts[index], is_user=True))
            elif any(part in piece.lower() for part in (_OPEN, _CLOSE, self._nonce.lower())):
                raise ValueError(
                    "it changes the text of a message in a way that cannot be followed"
                )
            else:
                segments.append(Segment(piece, is_user=False))
        if self._required - seen:
            raise ValueError(f"it leaves out {len(self._required - seen)} of the texts")
        return segments

    def reveal(self, text: str) -> str:
        """Put the texts back into a string for people to read, such as an error."""
        return self._marker.sub(lambda match: self._texts[int(match[1])], text)

    def mark_made(self, sources: Iterable["MarkedText"], text: str) -> "MarkedText":
        """Mark a text that was made of marked ones."""
        origins = (self._origins[source._index] for source in sources)
        return self._make(text, origins=frozenset().union(*origins))

    def _make(self, text: str, *, origins: frozenset[int]) -> "MarkedText":
        index = len(self._texts)
        self._texts.append(text)
        self._origins.append(origins)
        marked = MarkedText(f"{_OPEN}{self._nonce}x{index}{_CLOSE}")
        marked._vault = self
        marked._index = index
        marked._text = text
        return marked


class MarkedText(str):
    """A marker that answers like the text it stands for.

    The names of the attributes begin with an underscore: the sandbox lets no template read them.
    """

    _vault: TextVault
    _index: int
    _text: str

    def __eq__(self, other: object) -> bool:
        return bool(self._text == plain(other))

    def __ne__(self, other: object) -> bool:
        return bool(self._text != plain(other))

    def __hash__(self) -> int:
        return hash(self._text)

    def __len__(self) -> int:
        return len(self._text)

    def __contains__(self, part: str) -> bool:  # type: ignore[override]  # str names it key
        return str(plain(part)) in self._text

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return self._vault.mark_made((self,), self._text[key])


def plain(value: object) -> object:
    """Return a value with every marked text in it replaced by the real one."""
    if isinstance(value, MarkedText):
        return value._text
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value


def find_marked(value: object) -> Iterator[MarkedText]:
    """Go through a value and give every marked text in it."""
    if isinstance(value, MarkedText):
        yield value
    elif isinstance(value, dict):
        yield from find_marked([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from find_marked(item)


def derive_from(value: object, made: str) -> str:
    """Mark a string that was made of a value, if there is user text in the value."""
    sources = tuple(find_marked(value))
    return sources[0]._vault.mark_made(sources, made) if sources else made


def _on_text(name: str) -> Callable[..., object]:
    def method(self: MarkedText, *args: object, **kwargs: object) -> object:
        real_args = [plain(arg) for arg in args]
        real_kwargs = {key: plain(arg) for key, arg in kwargs.items()}
        return _mark_again(self, getattr(self._text, name)(*real_args, **real_kwargs))

    method.__name__ = name
    return method


def _mark_again(source: MarkedText, value: object) -> object:
    if isinstance(value, str):
        return source._vault.mark_made((source,), value)
    if isinstance(value, list | tuple):
        return type(value)(_mark_again(source, item) for item in value)
    return value


_TEXT_METHODS = (
    "capitalize casefold center count endswith expandtabs find index isalnum isalpha isascii "
    "isdecimal isdigit islower isnumeric isspace istitle isupper ljust lower lstrip partition "
    "removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split "
    "splitlines startswith strip swapcase title upper zfill"
)
for _name in _TEXT_METHODS.split():
    setattr(MarkedText, _name, _on_text(_name))
