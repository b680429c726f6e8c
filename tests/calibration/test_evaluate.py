"""Scoring: batched answers are those of each question alone, and only exact ones count."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from calibration.contact_sheet import write_contact_sheet
from calibration.data.examples import load_examples
from calibration.evaluate import evaluate
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
    path.write_text("\n".join(lines) + "\n")
    return path


def test_batched_answers_equal_those_of_each_question_alone(
    session: Session, questions: Path
) -> None:
    found = evaluate(session, load_examples(str(questions)), max_new_tokens=MAX_NEW)
    assert [outcome.is_right for outcome in found.outcomes] == [True, True, False, True, True]
    assert found.exact_match == 0.8
    assert {name: kind.exact_match for name, kind in found.kinds.items()} == {
        "long": 1.0,
        "short": pytest.approx(2 / 3),
    }


def test_the_command_prints_one_object_and_writes_what_was_asked_for(
    artifact: Path, questions: Path, tmp_path: Path
) -> None:
    results, sheet = tmp_path / "results.jsonl", tmp_path / "sheet.png"
    words = ["eval", str(artifact), "--set", str(questions), "--json", "--results", str(results)]
    words += ["--contact-sheet", str(sheet), "--max-new-tokens", str(MAX_NEW)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["exact_match"] == 0.8
    assert found["examples"] == 5
    assert found["kinds"]["long"] == {"exact_match": 1.0, "examples": 2}
    rights = [json.loads(line)["right"] for line in results.read_text().splitlines()]
    assert rights == [True, True, False, True, True]
    with Image.open(sheet) as picture:
        assert picture.size == (1280, 200)


def test_a_sheet_without_failures_says_so(tmp_path: Path) -> None:
    write_contact_sheet(tmp_path / "sheet.png", [])
    with Image.open(tmp_path / "sheet.png") as picture:
        colours = picture.convert("L").getcolors()
    assert colours is not None
    assert len(colours) > 1


BAD_LINES = {
    "not JSON": ("{", "line 2: "),
    "no answer": ('{"messages": [{"role": "user", "content": "x"}]}', "line 2: lacks 'answer'"),
    "a path that leaves the folder": (
        '{"messages": [{"role": "user", "content": [{"type": "image_url", '
        '"image_url": {"url": "../a.png"}}]}], "answer": "1"}',
        "line 2: .*leaves the folder",
    ),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "set.jsonl"
    good = '{"messages": [{"role": "user", "content": "x"}], "answer": "1"}'
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=message):
        load_examples(str(path))


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="neither a readable JSONL file nor one of nano"):
        load_examples("nowhere")
