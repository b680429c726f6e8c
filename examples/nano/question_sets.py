"""The committed question sets: how they are drawn, written and read.

Form: a folder of PNG files and `questions.jsonl`, one object in a line, with `messages` in the form
of the OpenAI API (picture paths relative to the file), the expected `answer`, the whole `reply`
with its derivation (calibration runs over it), and the `kind`.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from runtime.prompt.special_tokens import THINK_END, THINK_START

from .pictures import Rng
from .questions import Example, draw_cells, draw_ease, draw_example, draw_seed, draw_size

QUESTIONS_FILE = "questions.jsonl"
SEEDS = {"heldout": 20_001, "calibration": 20_002}
"""No training run may use one of these."""
COUNTS = {"heldout": 500, "calibration": 128}
LEVEL = 0.27
"""How far the pictures are from plain (0) to all the variety (1); where the training ends."""
_KINDS = ("read", "add", "larger", "add", "smaller", "read", "first", "add", "larger", "second")


def draw_set(seed: int, count: int, *, avoid: frozenset[str] = frozenset()) -> Iterator[Example]:
    """Draw the examples of a set, of all kinds by turns.

    Args:
        seed: where the numbers come from.
        count: number of examples.
        avoid: hashes of pictures that may not be in it.
    """
    seen = set(avoid)
    for index in range(count):
        rng = draw_seed(seed, index)
        while True:
            example = _draw(rng, index)
            hashes = [picture_hash(picture) for picture in example.pictures]
            if seen.isdisjoint(hashes) and len(set(hashes)) == len(hashes):
                break
        seen.update(hashes)
        yield example


def _draw(rng: Rng, index: int) -> Example:
    kind = _KINDS[index % len(_KINDS)]
    num_pictures = 1 if kind == "read" else 1 + (index // len(_KINDS)) % 2
    cells = draw_cells(rng, num_pictures, LEVEL)
    sizes = tuple(draw_size(rng, one, LEVEL) for one in cells)
    return draw_example(rng, sizes, draw_ease(rng, LEVEL), kind)


def picture_hash(picture: Image.Image) -> str:
    """Hash a picture's size and pixels."""
    digest = hashlib.sha256(repr(picture.size).encode())
    digest.update(picture.convert("RGB").tobytes())
    return digest.hexdigest()


def write_set(folder: Path, examples: Iterator[Example]) -> None:
    """Write pictures and questions; what a set of that name held before is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.png"):
        path.unlink()
    lines = []
    for index, example in enumerate(examples, start=1):
        names = [f"{index:04d}{letter}.png" for letter in "ab"[: len(example.pictures)]]
        for name, picture in zip(names, example.pictures, strict=True):
            picture.save(folder / name, optimize=True)
        line = {
            "messages": example.messages(tuple(names)),
            "answer": example.answer,
            "reply": example.reply,
            "kind": example.kind,
        }
        lines.append(json.dumps(line) + "\n")
    (folder / QUESTIONS_FILE).write_text("".join(lines), encoding="utf-8")


def read_set(folder: Path) -> list[Example]:
    """Read a set back."""
    examples = []
    for line in (folder / QUESTIONS_FILE).read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        *images, text = fields["messages"][0]["content"]
        examples.append(
            Example(
                kind=fields["kind"],
                question=text["text"],
                pictures=tuple(
                    Image.open(folder / image["image"]).convert("RGB") for image in images
                ),
                thought=_thought(fields["reply"]),
                answer=fields["answer"],
            )
        )
    return examples


def _thought(reply: str) -> str:
    return reply.removeprefix(THINK_START).partition(THINK_END)[0]
