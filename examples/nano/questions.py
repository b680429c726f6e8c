"""The task: questions about numbers in pictures, and the answers with their short derivation.

Does not know: tokens, how pictures are drawn.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from runtime.prompt.special_tokens import THINK_END, THINK_START

from .pictures import Rng, draw_picture

WORDINGS: dict[str, tuple[str, ...]] = {
    "read": (
        "What does it say?",
        "What is the number?",
        "Which number is this?",
        "Read the number.",
    ),
    "add": (
        "Add them.",
        "What is the sum?",
        "Add the numbers.",
        "How much is that together?",
    ),
    "larger": (
        "Which is larger?",
        "What is the larger number?",
        "Which number is greater?",
    ),
    "smaller": (
        "Which is smaller?",
        "What is the smaller number?",
        "Which number is less?",
    ),
    "first": (
        "What is the first number?",
        "Which number comes first?",
    ),
    "second": (
        "What is the second number?",
        "Which number comes last?",
    ),
}
"""Ways to ask, by kind of question."""

TEXT_WORDINGS = {
    "add": ("What is {a} plus {b}?", "Add {a} and {b}.", "{a}+{b}"),
    "larger": ("Which is larger, {a} or {b}?",),
    "smaller": ("Which is smaller, {a} or {b}?",),
}
"""The same without a picture: only trained on."""

KINDS = tuple(WORDINGS)
# How often a kind stands here is its share of the training.
_PAIR_KINDS = ("add",) * 4 + ("larger",) * 2 + ("smaller",) * 2 + ("first", "second")
_MAX_NUMBER = 100
_VARIETY = 0.6
_CELL = 28
MAX_CELLS = 16
"""Of 28 x 28 pixels: above that, the image rule shrinks a picture."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One question with everything that belongs to it."""

    kind: str
    question: str
    pictures: tuple[Image.Image, ...]
    thought: str
    answer: str

    @property
    def reply(self) -> str:
        """What the model is to write."""
        return f"{THINK_START}{self.thought}{THINK_END}{self.answer}"

    def messages(self, sources: tuple[Any, ...]) -> list[dict[str, Any]]:
        """The question in the form of the OpenAI API; `sources` stand for the pictures."""
        parts: list[dict[str, Any]] = [{"type": "image", "image": source} for source in sources]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": self.question}]}]


def draw_example(
    rng: Rng, sizes: tuple[tuple[int, int], ...], ease: float, kind: str | None = None
) -> Example:
    """Draw a question about pictures of given sizes.

    Args:
        rng: everything that varies comes from it.
        sizes: width and height of one or two pictures.
        ease: as in `draw_picture`.
        kind: one of `KINDS` that suits the pictures; drawn if None.
    """
    if kind is None:
        reads = len(sizes) == 1 and rng.random() < 0.4
        kind = "read" if reads else _PAIR_KINDS[int(rng.integers(len(_PAIR_KINDS)))]
    numbers = _draw_numbers(rng, 1 if kind == "read" else 2)
    shown = [numbers] if len(sizes) == 1 else [(number,) for number in numbers]
    thought, answer = solve(kind, numbers)
    return Example(
        kind=kind,
        question=str(rng.choice(WORDINGS[kind])),
        pictures=tuple(
            draw_picture(rng, some, size, ease) for some, size in zip(shown, sizes, strict=True)
        ),
        thought=thought,
        answer=answer,
    )


def draw_text_example(rng: Rng) -> Example:
    """Draw a question that names its numbers instead of showing them."""
    kind = str(rng.choice(["add", "add", "larger", "smaller"]))
    numbers = _draw_numbers(rng, 2)
    wording = str(rng.choice(TEXT_WORDINGS[kind]))
    thought, answer = solve(kind, numbers)
    return Example(
        kind=kind,
        question=wording.format(a=numbers[0], b=numbers[1]),
        pictures=(),
        thought=thought,
        answer=answer,
    )


def solve(kind: str, numbers: tuple[int, ...]) -> tuple[str, str]:
    """Give the derivation and the answer."""
    if kind == "read":
        return str(numbers[0]), str(numbers[0])
    a, b = numbers
    if kind == "add":
        tens, ones = a // 10 + b // 10, a % 10 + b % 10
        return f"{a}+{b}={10 * tens}+{ones}={a + b}", str(a + b)
    chosen = {"first": a, "second": b, "larger": max(a, b), "smaller": min(a, b)}[kind]
    return f"{a} and {b}", str(chosen)


def draw_ease(rng: Rng, level: float) -> float:
    """Draw how plain a picture is, for `draw_picture`; `level` is 0 for plain ones only."""
    hardest: float = _VARIETY * level
    return 1.0 - hardest * float(np.sqrt(rng.random()))


def draw_cells(rng: Rng, num_pictures: int, level: float) -> list[tuple[int, int]]:
    """Draw columns and rows of pictures, rather wide than high; from `level` 0 to 1 they grow."""
    most = max(2, round(2 + (MAX_CELLS - 2) * level) // num_pictures)
    return [_draw_grid(rng, most) for _ in range(num_pictures)]


def _draw_grid(rng: Rng, most: int) -> tuple[int, int]:
    while True:
        columns, rows = int(rng.integers(1, 9)), int(rng.integers(1, 7))
        if 2 <= columns * rows <= most and rows <= 2 * columns:
            return columns, rows


def draw_size(rng: Rng, cells: tuple[int, int], level: float) -> tuple[int, int]:
    """Draw width and height in pixels of a picture that fills a grid of (columns, rows) cells."""
    spare = _CELL * level
    width, height = (
        int(rng.integers(max(24, round(_CELL * count - spare) + 1), _CELL * count + 1))
        if spare >= 1
        else _CELL * count
        for count in cells
    )
    return width, height


def _draw_numbers(rng: Rng, count: int) -> tuple[int, ...]:
    while True:
        digits = rng.random(count) < 0.35
        numbers = tuple(int(rng.integers(0, 10 if few else _MAX_NUMBER)) for few in digits)
        if len(set(numbers)) == count:
            return numbers


def draw_seed(*words: int) -> Rng:
    """Make a generator whose numbers follow from the words alone."""
    return np.random.default_rng(words)
