"""What ends a request besides the model: token counts, and stop strings in arriving text.

Stop strings apply to the answer channel only: a thinking model may well write one while it thinks.
The text before a stop string is released, the string itself is not, and nothing after it. The
stop string that is complete first wins, of two that end together the longer one; only this rule
gives the same answer wherever the text was cut.

Does not know: tokens, channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError, describe_problems

FinishReason = Literal["stop", "length", "cancelled"]
"""`stop`: a stop id or a stop string; `length`: no new token was allowed or fits."""


@dataclass(frozen=True, kw_only=True)
class GenerationLimits:
    """What ends a request besides the model's own stop ids.

    Raises:
        InputError: a value is outside its range; all of them are named at once.
    """

    max_new_tokens: int | None = None
    """Most tokens to generate, thinking and stop id included; None is all that fits the slot."""
    max_thinking_tokens: int | None = None
    """Tokens of thinking after which `◁/think▷` is forced; None never forces it."""
    stop: tuple[str, ...] = ()
    """Strings of the answer channel that end the request and are not part of the text."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning, before a prompt is computed."""
        problems = []
        for name, minimum in (("max_new_tokens", 1), ("max_thinking_tokens", 0)):
            value = getattr(self, name)
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (is_integer and value >= minimum):
                problems.append(
                    f"{name}: expected an integer of at least {minimum}, found {value!r}"
                )
        is_tuple = isinstance(self.stop, tuple)
        if not is_tuple or not all(isinstance(item, str) and item for item in self.stop):
            problems.append(f"stop: expected a tuple of strings, none empty, found {self.stop!r}")
        if problems:
            raise InputError(describe_problems("generation limits", problems))


def forming_length(text: str, strings: Sequence[str]) -> int:
    """Return how many last characters of `text` may be the beginning of one of `strings`.

    The longest such ending counts; a complete string does not.
    """
    longest = max((len(string) - 1 for string in strings), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        ending = text[-length:]
        if any(len(string) > length and string.startswith(ending) for string in strings):
            return length
    return 0


class StopStrings:
    """Releases text up to the first stop string; holds back what may become one."""

    def __init__(self, strings: Sequence[str]) -> None:
        """Watch for `strings`, none of them empty; without any, all text passes."""
        if not all(strings):
            raise ValueError("an empty stop string would stop everywhere")
        self._strings = tuple(strings)
        self._held = ""
        self._is_found = False

    @property
    def is_found(self) -> bool:
        """Whether a stop string is complete; from then on nothing is released."""
        return self._is_found

    def push(self, text: str) -> str:
        """Take a piece and return what can be released."""
        if self._is_found:
            return ""
        text = self._held + text
        found = [(text.find(string), string) for string in self._strings if string in text]
        if found:
            self._is_found = True
            self._held = ""
            start, _ = min(found, key=lambda match: (match[0] + len(match[1]), match[0]))
            return text[:start]
        released = len(text) - forming_length(text, self._strings)
        self._held = text[released:]
        return text[:released]

    def flush(self) -> str:
        """Return what was held back; the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held
