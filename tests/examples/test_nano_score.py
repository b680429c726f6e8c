"""The example model's score: compiled in three recipes, in torch, by the oracle, and broken.

The score is the exact match over all held-out questions. What breaks the model or its input must
lower it, or the score would tell nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from calibration.data.examples import load_examples
from calibration.evaluate import Evaluation, evaluate
from examples.nano import score
from examples.nano.question_sets import SEEDS, picture_hash, read_set
from examples.nano.questions import Example
from runtime import GenerationLimits, Prompt, Sampling, Session
from runtime.generation.batch import Answer
from runtime.generation.request import Request
from runtime.prompt.images import load_image
from runtime.prompt.special_tokens import THINK_END
from tests.oracles.model import load_whole
from tool import app

pytestmark = pytest.mark.slow  # all but one need the compiled model

ROOT = Path(__file__).parents[2]
NANO = Path(score.__file__).parent
CHECKPOINT = NANO / "checkpoint"
PICTURE, QUESTION = "examples/numbers.png", "Add the numbers."
MAX_NEW = 64
NUM_BIAS, NUM_BLIND = 200, 100
"""Questions for the comparisons in torch, which is slower and whose differences are large."""
CHUNK = 50
"""Prompts that the oracle takes at a time."""

GOAL = 0.95
MAX_RECIPE_LOSS = 0.005
MAX_BLIND = 0.25
"""Exact match without pictures or with wrong ones; always guessing right between two is 0.5."""
MIN_BIAS_GAIN = 0.05


class Recorder(Session):
    """A session that remembers the ids of the answers it gave last."""

    replies: dict[int, tuple[int, ...]]

    def answer_all(self, requests: Iterable[Request]) -> Iterator[Answer]:
        self.replies = {}
        for answer in super().answer_all(requests):
            self.replies[answer.index] = answer.ids
            yield answer


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A compiled model with what it said to all held-out questions."""

    session: Recorder
    found: Evaluation

    @property
    def num_right(self) -> int:
        return len(self.found.outcomes) - len(self.found.failures)

    def prompt(self, index: int) -> Prompt:
        return self.session.encode(self.found.outcomes[index].example.messages)


Compile = Callable[[str], Scored]


@pytest.fixture(scope="module")
def compile_nano(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Export and build the committed checkpoint, and ask it all questions."""

    def compile_and_score(recipe: str) -> Scored:
        artifact = str(tmp_path_factory.mktemp("nano") / recipe)
        limits = ["--max-batch-size", "8", "--max-kv-cache-capacity", "256"]
        for words in (
            ["export", str(CHECKPOINT), artifact, "--recipe", recipe],
            ["build", artifact, "--target", "cpu", *limits],
        ):
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, done.output
        session = Recorder.open(artifact, num_threads=1)
        assert isinstance(session, Recorder)
        found = evaluate(session, load_examples("nano"), max_new_tokens=MAX_NEW)
        return Scored(session=session, found=found)

    return compile_and_score


@pytest.fixture(scope="module")
def fp32(compile_nano: Compile) -> Scored:
    return compile_nano("fp32")


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401  # no types
    return load_whole(CHECKPOINT, tmp_path_factory.mktemp("oracle"))


@pytest.fixture(scope="module")
def some() -> list[Example]:
    return read_set(NANO / "heldout")[:NUM_BIAS]


def score_in_torch(examples: Sequence[Example], *, has_bias: bool = True) -> float:
    """Exact match of the training form of the model."""
    model, encoder = score.load(CHECKPOINT)
    if not has_bias:
        score.zero_bias(model)
    answered = score.answer(model, encoder, examples)
    return sum(one.is_right for one in answered) / len(answered)


def test_the_compiled_model_answers_as_well_as_it_should(fp32: Scored) -> None:
    assert len(fp32.found.outcomes) == 500
    assert fp32.found.exact_match >= GOAL


@pytest.mark.parametrize("recipe", ["bf16", "fp16"])
def test_narrow_recipes_score_as_well(compile_nano: Compile, fp32: Scored, recipe: str) -> None:
    assert abs(compile_nano(recipe).found.exact_match - fp32.found.exact_match) <= MAX_RECIPE_LOSS


def test_the_readme_shows_what_the_demo_says(fp32: Scored) -> None:
    parts = [{"type": "image", "image": str(ROOT / PICTURE)}, {"type": "text", "text": QUESTION}]
    prompt = fp32.session.encode([{"role": "user", "content": parts}])
    limits = GenerationLimits(max_new_tokens=MAX_NEW)
    texts = {"thinking": "", "answer": ""}
    for piece in fp32.session.generate(prompt, Sampling.greedy(), limits):
        texts[piece.channel] += piece.text
    shown = f'{PICTURE} "{QUESTION}"\n{texts["thinking"]}\n{texts["answer"]}\n'
    assert shown in (ROOT / "README.md").read_text()
    assert texts["answer"] == "85"


def test_the_demo_picture_is_in_no_set() -> None:
    committed = [one for name in SEEDS for one in read_set(NANO / name)]
    hashes = {picture_hash(picture) for one in committed for picture in one.pictures}
    assert picture_hash(load_image(ROOT / PICTURE)) not in hashes


def test_torch_scores_the_same_and_needs_its_bias(fp32: Scored, some: list[Example]) -> None:
    whole = score_in_torch(some)
    compiled = sum(one.is_right for one in fp32.found.outcomes[:NUM_BIAS]) / NUM_BIAS
    assert abs(whole - compiled) <= 1 / NUM_BIAS
    assert score_in_torch(some, has_bias=False) <= whole - MIN_BIAS_GAIN


@pytest.mark.parametrize("broken", [score.without_pictures, score.with_wrong_pictures])
def test_without_the_right_pictures_there_is_little_to_say(
    broken: Callable[[Sequence[Example]], list[Example]], some: list[Example]
) -> None:
    assert score_in_torch(broken(some[:NUM_BLIND])) <= MAX_BLIND


def test_the_oracle_scores_the_same(fp32: Scored, oracle: Any) -> None:  # noqa: ANN401
    num_right, indices = 0, range(len(fp32.found.outcomes))
    for some in (indices[start : start + CHUNK] for start in indices[::CHUNK]):
        prompts = [fp32.prompt(index) for index in some]
        replies = [fp32.session.replies[index] for index in some]
        own = oracle_replies(oracle, prompts, replies, fp32.session.stop_ids)
        num_right += sum(is_right(fp32, *pair) for pair in zip(some, own, strict=True))
    assert abs(num_right - fp32.num_right) <= 1


@pytest.mark.parametrize("place", [0, 5, -1])
def test_a_planted_token_does_not_lead_the_oracle(
    fp32: Scored,
    oracle: Any,  # noqa: ANN401
    place: int,
) -> None:
    prompt, reply = fp32.prompt(0), list(fp32.session.replies[0])
    planted = [*reply]
    planted[place] += 1
    own, other = (
        oracle_replies(oracle, [prompt], [one], fp32.session.stop_ids) for one in (reply, planted)
    )
    assert own == other


def oracle_replies(
    oracle: Any,  # noqa: ANN401
    prompts: Sequence[Prompt],
    replies: Sequence[Sequence[int]],
    stop_ids: frozenset[int],
) -> list[list[int]]:
    """Give the oracle's own greedy replies, with the help of another model's.

    It reads each prompt with the other's reply behind it. Where its choice is that reply's next
    token all along, its own reply is the same; elsewhere it goes on alone from the first token that
    differs.
    """
    own_replies = []
    chosen = oracle_choices(oracle, prompts, replies)
    for prompt, reply, own in zip(prompts, replies, chosen, strict=True):
        differs = [one != other for one, other in zip(own, reply, strict=True)]
        if any(differs):
            own = continue_alone(oracle, prompt, own[: differs.index(True) + 1], stop_ids)
        own_replies.append(own)
    return own_replies


def oracle_choices(
    oracle: Any,  # noqa: ANN401
    prompts: Sequence[Prompt],
    replies: Sequence[Sequence[int]],
) -> list[list[int]]:
    """Give the oracle's choice at every place of the replies, in one batch padded on the right."""
    rows = [np.append(prompt.ids, reply) for prompt, reply in zip(prompts, replies, strict=True)]
    ids = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.int64)
    for place, row in zip(ids, rows, strict=True):
        place[: len(row)] = torch.from_numpy(row)
    images = [image for prompt in prompts for image in prompt.images]
    patches = [image.patches.reshape(-1, 3, 14, 14) for image in images]
    with torch.no_grad():
        logits = oracle(
            input_ids=ids,
            pixel_values=torch.from_numpy(np.concatenate(patches)),
            image_grid_thw=torch.tensor([(1, *image.grid) for image in images]),
        ).logits
    return [
        row[len(prompt) - 1 : len(prompt) - 1 + len(reply)].tolist()
        for row, prompt, reply in zip(logits.argmax(dim=-1), prompts, replies, strict=True)
    ]


def continue_alone(
    oracle: Any,  # noqa: ANN401
    prompt: Prompt,
    reply: list[int],
    stop_ids: frozenset[int],
) -> list[int]:
    """Let the oracle end a reply that it has begun."""
    while reply[-1] not in stop_ids and len(reply) < MAX_NEW:
        # The choice at the place behind the reply is the next token; what stands there is not read.
        reply = [*reply, oracle_choices(oracle, [prompt], [[*reply, 0]])[0][-1]]
    return reply


def is_right(scored: Scored, index: int, reply: Sequence[int]) -> bool:
    """Whether the answer in a reply is the expected one."""
    ids = [token for token in reply if token not in scored.session.stop_ids]
    text = scored.session.tokenizer.decode(ids)
    return text.rpartition(THINK_END)[2].strip() == scored.found.outcomes[index].example.answer
