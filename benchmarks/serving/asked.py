"""What is asked, and of which model."""

import random
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from calibration.data.samples import load_conversations
from engines.build import build_target
from engines.load.asked import Question, draw_questions
from engines.options import BuildOptions
from export.checkpoint.reader import Checkpoint
from export.recipe.reading import load_recipe
from export.stage import ExportOptions, export_checkpoint
from runtime.prompt.messages import Image, Message, Text

_CHECKPOINT = Path(__file__).parents[2] / "examples" / "nano" / "checkpoint"
_WORDS = ("river", "stone", "window", "lantern", "copper", "garden", "letter", "morning", "engine")
_NUM_WORDS = (30, 250)
_SIDE = 448


def compile_nano(folder: Path, *, num_slots: int) -> Path:
    """Compile the small trained model in fp32, unless it is there; 256 tokens for each slot."""
    export_checkpoint(
        Checkpoint.open(_CHECKPOINT), folder, ExportOptions(recipe=load_recipe("fp32"))
    )
    build_target(folder, "cpu", BuildOptions(max_tokens=256, max_slots=num_slots))
    return folder


def nano_questions(count: int, *, text_share: float) -> list[Question]:
    """Draw so many held-out questions, at most 500; of a share the pictures are left out."""
    questions = [Question.of(one.messages) for one in load_conversations("nano")]
    assert count <= len(questions), "a question that comes again is found in a slot"
    return draw_questions(questions, count, text_share=text_share)


def nano_pictures(count: int) -> list[Question]:
    """Take so many held-out questions with one picture."""
    questions = [Question.of(one.messages) for one in load_conversations("nano")]
    return [one for one in questions if one.num_images == 1][:count]


def long_questions(count: int) -> list[Question]:
    """Make texts of 30 to 250 words, each with another beginning."""
    generator = random.Random(0)
    texts = (
        " ".join(generator.choices(_WORDS, k=generator.randint(*_NUM_WORDS))) for _ in range(count)
    )
    return [
        Question(messages=[{"role": "user", "content": f"{number}. {text}"}], num_images=0)
        for number, text in enumerate(texts)
    ]


def noise_pictures(count: int) -> list[Question]:
    """Make questions about pictures of 448 x 448 random pixels, all different."""
    return [
        Question.of([Message(role="user", parts=(Image(source=data), Text(text="Describe it.")))])
        for data in _noise(count)
    ]


def _noise(count: int) -> Iterator[bytes]:
    generator = np.random.default_rng(0)
    for _ in range(count):
        pixels = generator.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
        file = BytesIO()
        PillowImage.fromarray(pixels).save(file, "PNG")
        yield file.getvalue()
