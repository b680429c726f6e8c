"""What run and chat share: the request that the flags describe, and its pieces on the way out."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from runtime.errors import InputError

from . import output, progress

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from runtime.engine.cpu.weights_place import WeightsPlace
    from runtime.generation.request import Request, Result
    from runtime.generation.sampling import Choice
    from runtime.prompt.encoder import Prompt
    from runtime.session import Session

_CHANCE_ONLY = ("top_k", "top_p", "min_p")
"""Values that choose nothing while the temperature is 0."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the flags ask for; what is not given stays as the release wants it."""

    sampling: Mapping[str, Any]
    limits: Mapping[str, Any]

    @classmethod
    def of_flags(cls, sampling: Mapping[str, Any], limits: Mapping[str, Any]) -> "Wishes":
        """Keep what was given, and refuse wrong values before anything is loaded.

        Raises:
            InputError: a value is outside its range.
        """
        from runtime.generation.sampling import Sampling
        from runtime.generation.stopping import GenerationLimits

        wishes = cls(
            sampling={name: value for name, value in sampling.items() if value is not None},
            limits={name: value for name, value in limits.items() if value is not None},
        )
        Sampling(**wishes.sampling)
        GenerationLimits(**wishes.limits)
        return wishes

    def request(self, session: "Session", prompt: "Prompt") -> "Request":
        """Describe a request: the release's values with the wishes in their place."""
        default = session.request(prompt)
        return session.request(
            prompt,
            sampling=replace(default.sampling, **self.sampling),
            limits=replace(default.limits, **self.limits),
        )

    def warn(self, session: "Session") -> None:
        """Name the flags that have no effect, since the choice is greedy."""
        default = session.release.temperature if session.release else 0
        idle = [name for name in _CHANCE_ONLY if name in self.sampling]
        if idle and self.sampling.get("temperature", default) == 0:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
            output.note(f"note: {flags} without effect at temperature 0; give --temperature")


@dataclass(kw_only=True)
class Answer:
    """The text of both channels and the tokens behind it, as far as they came."""

    thinking: str = ""
    text: str = ""
    choices: list["Choice"] = field(default_factory=list)


def open_session(
    folder: "Path",
    target: str,
    release: str | None,
    *,
    threads: int | None,
    weights: "WeightsPlace",
) -> "Session":
    """Check and load an artifact."""
    from runtime.session import Session

    with progress.waiting("opening the artifact"):
        return Session.open(
            folder, target=target, release=release, num_threads=threads, weights=weights
        )


def open_image(path: str) -> "Image.Image":
    """Open an image before anything slow is begun.

    Raises:
        InputError: it is missing, broken, or at an address instead of a path.
        CapacityError: it is too large.
    """
    from runtime.prompt.images import load_image

    if not path:
        raise InputError("--image: expected the path of an image, found an empty one")
    if "://" in path:
        raise InputError(f"{path}: addresses are not fetched; download the image, give its path")
    return load_image(path)


def collect(session: "Session", request: "Request") -> Answer:
    """Take the whole answer and print nothing."""
    answer = Answer()
    with closing(session.stream(request)) as pieces:
        for piece in pieces:
            _add(answer, piece.text, is_thinking=piece.channel == "thinking")
            answer.choices += piece.choices
    return answer


def print_stream(
    session: "Session", request: "Request", answer: Answer, *, show_thinking: bool
) -> None:
    """Print pieces as they come, thinking dimmed, and note them in `answer`.

    The last line is ended also when an error or Ctrl-C ends the request.
    """
    printer = _Printer(show_thinking=show_thinking)
    try:
        with closing(session.stream(request)) as pieces:
            for piece in pieces:
                is_thinking = piece.channel == "thinking"
                _add(answer, piece.text, is_thinking=is_thinking)
                printer.write(piece.text, is_thinking=is_thinking)
    finally:
        printer.end_line()


def note_result(result: "Result | None") -> None:
    """Tell people in one line what the answer took."""
    if result is None or not output.is_note_terminal():
        return
    usage, timings = result.usage, result.timings
    output.note(
        f"[{usage.prompt_tokens} tokens in, {usage.new_tokens} out, "
        f"{timings.decode_tokens_per_s:.1f} tokens/s, first after "
        f"{timings.time_to_first_token_s:.2f} s, finish reason {result.finish_reason}]"
    )


def user_message(text: str, images: Sequence[Any]) -> dict[str, Any]:
    """Put images before the text of one message in OpenAI form."""
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _add(answer: Answer, text: str, *, is_thinking: bool) -> None:
    if is_thinking:
        answer.thinking += text
    else:
        answer.text += text


class _Printer:
    """Writes pieces to stdout and knows whether the line is open."""

    def __init__(self, *, show_thinking: bool) -> None:
        self._show_thinking = show_thinking
        self._is_after_thinking = False
        self._is_line_open = False

    def write(self, text: str, *, is_thinking: bool) -> None:
        if not text or (is_thinking and not self._show_thinking):
            return
        if self._is_after_thinking and not is_thinking:
            self.end_line()
        self._is_after_thinking = is_thinking
        self._is_line_open = not text.endswith("\n")  # first: Ctrl-C may come while it is written
        output.stream(text, is_dim=is_thinking)

    def end_line(self) -> None:
        if self._is_line_open:
            output.stream("\n")
            self._is_line_open = False
