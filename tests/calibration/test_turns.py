"""Conversations of several turns: made, encoded, summed up, shown."""

from pathlib import Path

import pytest
import torch

from calibration.data.examples import Example
from calibration.data.samples import Sample
from calibration.data.turns import MAX_CONVERSATIONS, encode_turns, turns_of
from calibration.price.distance import Distance, Reference
from calibration.price.figures import by_turn
from examples.nano.score import HERE
from runtime.config import KimiVLConfig
from runtime.prompt.encoder import PromptEncoder
from runtime.prompt.messages import Image, Message, Part, Text
from tests.calibration.report_inputs import Told, make_quality, write

from .test_report import text_of


def said(role: str, text: str, *pictures: str) -> Message:
    parts: list[Part] = [Image(source=picture) for picture in pictures]
    return Message(role=role, parts=(*parts, Text(text=text)))


def asked(number: int, *pictures: str) -> Example:
    return Example(
        messages=(said("user", f"question {number}", *pictures),),
        answer=str(number),
        reply=f"◁think▷hm◁/think▷{number}",
        kind="all",
    )


def told(example: Example) -> list[tuple[str, str, int]]:
    """Role, text and number of pictures of each message."""
    return [
        (
            message.role,
            "".join(part.text for part in message.parts if isinstance(part, Text)),
            sum(isinstance(part, Image) for part in message.parts),
        )
        for message in example.messages
    ]


def test_single_questions_are_asked_one_after_the_other() -> None:
    turns = turns_of([asked(number, f"{number}.png") for number in range(3)])
    assert [turn.turn for turn in turns] == [1, 2, 3]
    assert [turn.reply for turn in turns] == [f"◁think▷hm◁/think▷{n}" for n in range(3)]
    assert told(turns[2]) == [
        ("user", "question 0", 1),
        ("assistant", "0", 0),
        ("user", "question 1", 1),
        ("assistant", "1", 0),
        ("user", "question 2", 1),
    ]


def test_questions_about_the_same_picture_show_it_once() -> None:
    pictures = ["a.png", "b.png", "a.png", "a.png"]
    turns = turns_of([asked(number, picture) for number, picture in enumerate(pictures)])
    assert [count for _, _, count in told(turns[2])] == [1, 0, 0, 0, 0]
    assert [text for role, text, _ in told(turns[2]) if role == "user"] == [
        "question 0",
        "question 2",
        "question 3",
    ]


def test_the_systems_words_stand_once() -> None:
    system = said("system", "be kind")
    examples = [
        Example(messages=(system, *one.messages), answer="", reply=one.reply, kind="all")
        for one in (asked(0), asked(1))
    ]
    assert [role for role, _, _ in told(turns_of(examples)[-1])] == [
        *("system", "user", "assistant", "user")
    ]


def test_conversations_that_have_turns_are_taken_apart_and_none_is_made() -> None:
    history = (
        said("user", "first"),
        said("assistant", "◁think▷so◁/think▷one"),
        said("user", "second"),
    )
    own = Example(messages=history, answer="", reply="two", kind="all")
    turns = turns_of([asked(0), own, asked(1)])
    assert [(turn.turn, turn.reply) for turn in turns] == [(1, "◁think▷so◁/think▷one"), (2, "two")]
    assert told(turns[1])[1] == ("assistant", "one", 0)


@pytest.mark.parametrize(("count", "conversations"), [(1, 0), (5, 1), (16, 2), (400, 6)])
def test_their_number_is_bounded(count: int, conversations: int) -> None:
    turns = turns_of([asked(number) for number in range(count)])
    assert sum(turn.turn == 1 for turn in turns) == conversations <= MAX_CONVERSATIONS


def test_without_replies_there_are_no_turns() -> None:
    silent = Example(messages=(said("user", "hello"),), answer="", kind="all")
    assert turns_of([silent, silent]) == []


def test_turns_that_are_too_long_are_left_out() -> None:
    folder = HERE / "checkpoint"
    prompts = PromptEncoder.load(folder, KimiVLConfig.load(folder / "config.json"))
    turns = turns_of([asked(number) for number in range(4)])
    samples = encode_turns(turns, prompts, 1000)
    lengths = [len(sample.ids) for sample in samples]
    assert [sample.turn for sample in samples] == [1, 2, 3, 4]
    assert lengths == sorted(lengths)
    assert prompts.tokenizer.decode(samples[3].ids[samples[3].judged + 1].tolist()).startswith(
        "◁think▷hm◁/think▷3"
    )
    kept = encode_turns(turns, prompts, lengths[1])
    assert [len(sample.ids) for sample in kept] == lengths[:2]


def sample(turn: int, reply: list[int]) -> Sample:
    ids = torch.tensor([0, *reply]).numpy()
    judged = torch.arange(len(reply)).numpy()
    return Sample(ids=ids, is_image=ids < 0, images=(), judged=judged, has_reply=True, turn=turn)


def test_figures_are_summed_up_by_turn() -> None:
    samples = [sample(1, [1, 2]), sample(2, [3]), sample(1, [2]), sample(2, [1])]
    logits = [torch.eye(4)[one.ids[1:]] * 9 for one in samples]
    references = [Reference.of(one) for one in logits]
    off = [logits[0], logits[1].roll(1, dims=1), logits[2], logits[3]]
    distances = [Distance.between(a, b) for a, b in zip(references, off, strict=True)]
    first, second = by_turn(samples, references, distances)
    assert (first["turn"], first["conversations"], first["positions"]) == (1, 2, 3)
    assert (first["kl_mean"], first["top1"], first["exact_match"]) == (0.0, 1.0, 1.0)
    assert (second["turn"], second["conversations"], second["positions"]) == (2, 2, 2)
    assert (second["top1"], second["exact_match"], second["exact_match_reference"]) == (0.5, 0.5, 1)
    assert second["kl_mean"] > 1


def test_the_report_shows_each_turn_of_recipe_and_target(tmp_path: Path) -> None:
    samples = [Told(question="what?", reply=(1, 2), kl=0.1)]
    quality = make_quality(samples)
    figures = {"positions": 20, "top1": 0.5, "exact_match": 0.25, "exact_match_reference": 0.75}
    turns = [
        {"turn": turn, "conversations": 6, "kl_mean": 0.01 * turn, **figures} for turn in (1, 2)
    ]
    quality["graphs"]["head"]["recipes"]["nvfp4"]["turns"] = turns
    whole = {"kl_mean": 0.02, "top1": 1.0}
    of_turns = {f"turn_{n}_{key}": 0.125 for n in (1, 2) for key in ("kl_mean", "top1")}
    page = write(tmp_path / "r.html", samples, quality, prices={"cpu": whole | of_turns})
    text = text_of(page)
    assert "2recipe6200.0200" in text
    assert "2cpu6200.12512.5" in text
    assert "mean KL through target cpu (nats)0.0200" in text
    del turns[1]
    assert "Turn by turn" not in write(tmp_path / "r.html", samples, quality)
