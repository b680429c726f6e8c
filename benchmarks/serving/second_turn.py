"""The second turn about a picture, behind the first one and without it."""

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any

from engines.load.asked import Question
from engines.load.endpoint import Endpoint, Wishes
from engines.load.opening import connect

from .process import read_counts

_TIMEOUT_S = 3600.0
_MAX_NEW_TOKENS = 4
_ANSWER, _FOLLOW_UP = "I see two numbers.", "Which one is larger?"
_COUNTED = {
    "prompt_tokens": "kimivl_prompt_tokens_total",
    "reused_tokens": "kimivl_prefix_hit_tokens_total",
    "images_encoded": "kimivl_images_encoded_total",
}


def time_second_turn(url: str, questions: Sequence[Question]) -> dict[str, Any]:
    """Ask two turns about each picture: at once, or the first and then both, in turn.

    Args:
        url: of a server that has seen none of the questions.
        questions: with one picture each, all different; an even number.
    """
    endpoint = connect(url, Wishes(max_new_tokens=_MAX_NEW_TOKENS, timeout_s=_TIMEOUT_S))
    pairs = []
    for fresh, known in zip(questions[::2], questions[1::2], strict=True):
        without = _second_turn(url, endpoint, fresh)
        _time_to_first_token(endpoint, known)
        pairs.append({"without_first": without, "behind_first": _second_turn(url, endpoint, known)})
    return {
        "time_to_first_token_s": {
            name: median(pair[name]["time_to_first_token_s"] for pair in pairs)
            for name in ("without_first", "behind_first")
        },
        "ratio_behind_to_without": median(
            pair["behind_first"]["time_to_first_token_s"]
            / pair["without_first"]["time_to_first_token_s"]
            for pair in pairs
        ),
        "pairs": pairs,
    }


def _second_turn(url: str, endpoint: Endpoint, question: Question) -> dict[str, float]:
    turns = [
        *question.messages,
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _FOLLOW_UP},
    ]
    before = read_counts(url)
    seconds = _time_to_first_token(
        endpoint, Question(messages=turns, num_images=question.num_images)
    )
    after = read_counts(url)
    counts = {name: after[key] - before[key] for name, key in _COUNTED.items()}
    return {"time_to_first_token_s": seconds, **counts}


def _time_to_first_token(endpoint: Endpoint, question: Question) -> float:
    heard: list[float] = []
    start = perf_counter()
    endpoint.ask(question, lambda _: heard.append(perf_counter()))
    return (heard[0] if heard else perf_counter()) - start
