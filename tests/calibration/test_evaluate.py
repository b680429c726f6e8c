"""Scoring: batched answers are those of each question alone, and only exact ones count."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from calibration.contact_sheet import write_contact_sheet
from calibration.evaluate import evaluate
from calibration.examples import load_examples
from runtime import GenerationLimits, Sampling, Session
from runtime.errors import InputError
from tool import app

QUESTIONS = ("How many?", "And what is this, if it is longer than the others?", "x", "Why", "Who?")
MAX_NEW = 12


@pytest.fixture(scope="module")
def session(artifact: Path) -> Session:
    return Session.open(artifact)


def content(question: str, folder: Path) -> list[dict[str, Any]]:
    name = f"{len(question)}.png"
    Image.new("RGB", (40 + len(question), 70), (90, 20, 5 * len(question) % 256)).save(
        folder / name
    )
    return [{"type": "image", "image": name}, {"type": "text", "text": question}]


def answer_alone(session: Session, messages: list[dict[str, Any]]) -> str:
    prompt = session.encode(messages)
    limits = GenerationLimits(max_new_tokens=MAX_NEW)
    pieces = session.generate(prompt, Sampling.greedy(), limits)
    return "".join(piece.text for piece in pieces if piece.channel == "answer")


@pytest.fixture(scope="module")
def questions(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five questions; expected is what the model says to each alone, but for the third."""
    folder = tmp_path_factory.mktemp("set")
    lines = []
    for number, question in enumerate(QUESTIONS):
        parts = content(question, folder)
        absolute = [{**parts[0], "image": str(folder / parts[0]["image"])}, parts[1]]
        expected = answer_alone(session, [{"role": "user", "content": absolute}])
        fields = {
            "messages": [{"role": "user", "content": parts}],
            "answer": expected + ("!" if number == 2 else ""),
            "kind": "short" if len(question) < 6 else "long",
        }
        lines.append(json.dumps(fields))
    path = folder / "questions.jsonl"
    good = '{"messages": [{"role": "user", "content": "x"}], "answer": "1"}'
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=message):
        load_examples(str(path))


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="neither a readable JSONL file nor one of nano"):
        load_examples("nowhere")
