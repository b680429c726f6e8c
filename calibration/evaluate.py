"""Exact match: the share of examples whose greedy answer is the expected one, to the letter."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime import GenerationLimits, Sampling, Session
from runtime.progress import Progress, silent

from .data.examples import Example

STAGE = "eval"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a model said to one example."""

    example: Example
    answer: str
    """The answer channel, without white space around it."""
    thinking: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is the expected one."""
        return self.answer == self.example.answer.strip()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All outcomes of a set, in its order."""

    outcomes: tuple[Outcome, ...]

    @property
    def exact_match(self) -> float:
        """Share of right answers, 0 to 1."""
        return sum(outcome.is_right for outcome in self.outcomes) / len(self.outcomes)

    @property
    def kinds(self) -> dict[str, "Evaluation"]:
        """The same by kind of question, in alphabetical order."""
        names = sorted({outcome.example.kind for outcome in self.outcomes})
        return {
            name: Evaluation(outcomes=tuple(o for o in self.outcomes if o.example.kind == name))
            for name in names
        }

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """Outcomes with another answer than the expected one."""
        return tuple(outcome for outcome in self.outcomes if not outcome.is_right)


def evaluate(
    session: Session,
    examples: Sequence[Example],
    *,
    max_new_tokens: int | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Ask every question greedily, as many at a time as the engine has slots.

    Args:
        session: an opened artifact.
        examples: at least one.
        max_new_tokens: thinking and answer together; all that fits, if left out.
        progress: told in examples.

    Raises:
        InputError: a message or picture cannot be used.
        CapacityError: a prompt does not fit.
    """
    limits = GenerationLimits(max_new_tokens=max_new_tokens)
    requests = (
        session.request(session.encode(example.messages), Sampling.greedy(), limits)
        for example in examples
    )
    outcomes: dict[int, Outcome] = {}
    progress(STAGE, 0, len(examples))
    for answer in session.answer_all(requests):
        outcomes[answer.index] = Outcome(
            example=examples[answer.index],
            answer=answer.text.strip(),
            thinking=answer.thinking.strip(),
        )
        progress(STAGE, len(outcomes), len(examples))
    return Evaluation(outcomes=tuple(outcomes[index] for index in range(len(examples))))
