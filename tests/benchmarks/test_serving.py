"""What the benchmarks of the server measure is what they say."""

from pathlib import Path

import pytest

from benchmarks.serving import asked
from benchmarks.serving.mixed import Way, time_ways
from benchmarks.serving.process import serving
from benchmarks.serving.second_turn import time_second_turn

pytestmark = pytest.mark.slow


def test_two_ways_and_two_turns_are_measured_on_one_server(tmp_path: Path) -> None:
    artifact = asked.compile_nano(tmp_path / "nano", num_slots=2)
    questions = asked.nano_questions(8, text_share=0.25)
    with serving(artifact) as url:
        ways = {"together": Way(url=url, clients=2), "lone_client": Way(url=url, clients=1)}
        mixed = time_ways(ways, (questions[:4], questions[4:]), max_new_tokens=8)
        turns = time_second_turn(url, asked.nano_pictures(4))
    first, second = mixed["rounds"]
    assert mixed["ratios"]["requests_per_s"] == pytest.approx(
        sum(
            one["together"]["requests_per_s"] / one["lone_client"]["requests_per_s"]
            for one in (first, second)
        )
        / 2
    )
    for pair in turns["pairs"]:
        without, behind = pair["without_first"], pair["behind_first"]
        assert (without["images_encoded"], behind["images_encoded"]) == (1, 0)
        assert without["reused_tokens"] < behind["reused_tokens"] < behind["prompt_tokens"]


def test_no_question_comes_twice_and_pictures_differ() -> None:
    texts = [str(one.messages) for one in asked.long_questions(40)]
    pictures = [str(one.messages) for one in asked.noise_pictures(3)]
    assert len(set(texts)) == 40
    assert len(set(pictures)) == 3
    with pytest.raises(AssertionError, match="comes again"):
        asked.nano_questions(501, text_share=0)
