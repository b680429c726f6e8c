"""From one row of logits to one token id: penalty, temperature, top-k, top-p, min-p, a draw.

The order is that of Hugging Face `generate`; vLLM differs in one point, it takes min-p before
top-k and top-p. Values and the draw are float64; the candidates stay in the order of their ids,
so that a filter which removes nothing does not change what a seed draws.

Does not know: text, engines, when to stop.

Source: transformers `generation/logits_process.py` (RepetitionPenaltyLogitsProcessor,
TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, describe_problems

MAX_LOGPROBS = 20
"""Most alternatives that one token can report."""

LEAST_PENALTY, MOST_PENALTY = 0.01, 100.0
"""Of the repetition penalty: far outside of what makes sense, and every logit stays finite."""

_FIRST_NUCLEUS = 256
_NUCLEUS_GROWTH = 16

_Logits = NDArray[np.float32]
_Scores = NDArray[np.float64]
_Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the default is greedy.

    Raises:
        InputError: a value is outside its range; all of them are named at once.
    """

    temperature: float = 0.0
    """Divides the logits; 0 is greedy: the highest logit, of equal ones the lowest id."""
    top_k: int = 0
    """Keep exactly the k best tokens, of equal ones the lowest ids; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest best tokens that hold this share of the probability; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens of at least this share of the best one's probability; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of ids in prompt and answer; 1 is none."""
    seed: int | None = None
    """Equal seeds draw equally; None takes fresh entropy."""
    logprobs: int = 0
    """How many of the best tokens are reported with each choice; 0 reports none."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning, before a prompt is computed."""
        checks: list[tuple[str, Callable[[float], bool], str]] = [
            ("temperature", lambda x: 0 <= x < math.inf, "0 (greedy) or a positive number"),
            ("top_p", lambda x: 0 < x <= 1, "a number above 0 and at most 1 (1 = all)"),
            ("min_p", lambda x: 0 <= x <= 1, "a number from 0 (all) to 1"),
            (
                "repetition_penalty",
                lambda x: LEAST_PENALTY <= x <= MOST_PENALTY,
                f"a number from {LEAST_PENALTY:g} to {MOST_PENALTY:g} (1 = none)",
            ),
        ]
        problems = [
            f"{name}: expected {wanted}, found {getattr(self, name)!r}"
            for name, is_right, wanted in checks
            if not (_is_number(getattr(self, name)) and is_right(getattr(self, name)))
        ]
        if not _is_count(self.top_k):
            problems.append(f"top_k: expected an integer of at least 0, found {self.top_k!r}")
        if self.seed is not None and not _is_count(self.seed):
            problems.append(f"seed: expected an integer of at least 0, found {self.seed!r}")
        if not _is_count(self.logprobs) or self.logprobs > MAX_LOGPROBS:
            problems.append(
                f"logprobs: expected an integer from 0 to {MAX_LOGPROBS}, found {self.logprobs!r}"
            )
        if problems:
            raise InputError(describe_problems("sampling", problems))

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the highest logit of the model itself is chosen, and no number is reported."""
        return self.temperature == 0 and self.repetition_penalty == 1 and self.logprobs == 0

    @classmethod
    def greedy(cls) -> "Sampling":
        """Make the sampling that has no chance in it."""
        return cls()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class TokenLogprob(NamedTuple):
    """One token and its natural log probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A chosen token and, if asked for, what the model itself thought of it.

    Log probabilities are the log-softmax of the logits as they left the model: penalty,
    temperature and filters change the choice, not these numbers.
    """

    token_id: int
    logprob: float | None = None
    """None when `Sampling.logprobs` is 0."""
    top: tuple[TokenLogprob, ...] = field(default=())
    """The best tokens, best first, of equal ones the lowest id first."""


class Sampler:
    """Chooses the tokens of one sequence; holds the random generator and the prompt's ids."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int] | _Ids) -> None:
        """Start a sequence.

        Args:
            sampling: the values.
            prompt_ids: ids (S,) that the repetition penalty counts as seen.
        """
        self._sampling = sampling
        self._prompt_ids = np.asarray(prompt_ids, dtype=np.int64)
        self._generator = np.random.Generator(np.random.PCG64(sampling.seed))

    def choose(
        self,
        logits: _Logits,
        ids_so_far: Sequence[int],
        allowed: NDArray[np.bool_] | None = None,
    ) -> Choice:
        """Choose the next token.

        Args:
            logits: finite logits (V,) of the last token; not changed.
            ids_so_far: generated ids, without the prompt.
            allowed: which ids may be chosen (V,), at least one; all, if left out. The others are
                gone before everything but the penalty: filters count what is left.
        """
        sampling = self._sampling
        scores: NDArray[np.floating] = logits
        if sampling.repetition_penalty != 1:
            scores = self._penalised(logits, ids_so_far)
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        if sampling.temperature == 0:
            return self.describe(logits, int(np.argmax(scores)))
        return self.describe(logits, self._draw(scores))

    def describe(self, logits: _Logits, token_id: int) -> Choice:
        """Report a token that was chosen from these logits, here or elsewhere."""
        if self._sampling.logprobs == 0:
            return Choice(token_id=token_id)
        best = logits.max()
        log_total = np.log(np.exp(logits.astype(np.float64) - best).sum())
        top = _best(logits, self._sampling.logprobs)

        def logprob(index: int) -> float:
            return float(np.float64(logits[index]) - best - log_total)

        return Choice(
            token_id=token_id,
            logprob=logprob(token_id),
            top=tuple(TokenLogprob(int(index), logprob(int(index))) for index in top),
        )

    def _penalised(self, logits: _Logits, ids_so_far: Sequence[int]) -> _Scores:
        penalty = self._sampling.repetition_penalty
        scores = logits.astype(np.float64)
        # An id that was seen twice is read and written twice with one value: penalised once.
        ids = np.concatenate([self._prompt_ids, np.asarray(ids_so_far, dtype=np.int64)])
        seen = scores[ids]
        scores[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
        return scores

    def _draw(self, scores: NDArray[np.floating]) -> int:
        sampling = self._sampling
        above = scores.astype(np.float64) - scores.max()  # (V,), the best is 0
        with np.errstate(over="ignore"):  # a tiny temperature: everything else goes to -inf
            above /= sampling.temperature
        ids = np.arange(above.size)
        if 0 < sampling.top_k < above.size:
            ids = np.sort(_best(above, sampling.top_k))
        weights = np.exp(above[ids])  # (candidates,), the best is 1
        if sampling.top_p < 1:
            inside = np.sort(_nucleus(weights, sampling.top_p))
            ids, weights = ids[inside], weights[inside]
        if sampling.min_p > 0:
            kept = weights >= sampling.min_p
            ids, weights = ids[kept], weights[kept]
        heights = np.cumsum(weights)
        # random() < 1 keeps the point below the last height; "right" skips weights of 0.
        point = self._generator.random() * heights[-1]
        return int(ids[np.searchsorted(heights, point, side="right")])


def _best(values: NDArray[np.floating], count: int) -> _Ids:
    """Return the indices of the `count` largest values, largest first, of equal ones the lowest."""
    if count >= values.size:
        candidates = np.arange(values.size)
    else:
        threshold = np.partition(values, -count)[-count]
        candidates = np.flatnonzero(values >= threshold)
    order = np.lexsort((candidates, -values[candidates]))
    return candidates[order[:count]]


def _nucleus(weights: _Scores, top_p: float) -> _Ids:
    """Return the fewest indices, largest weight first, that hold `top_p` of all weight.

    Sorting a whole vocabulary costs more than the rest of a token, and a nucleus is small.
    """
    wanted = top_p * weights.sum()
    count = _FIRST_NUCLEUS
    while True:
        order = _best(weights, count)
        heights = np.cumsum(weights[order])
        if heights[-1] >= wanted or count >= weights.size:
            return order[: np.searchsorted(heights, wanted) + 1]
        count *= _NUCLEUS_GROWTH
