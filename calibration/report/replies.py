"""What fp32 and a recipe write, token by token, with the differing ones marked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from ..data.examples import Example
from ..data.samples import Sample
from .markup import Html, element
from .numbers import several

Decode = Callable[[Sequence[int]], str]

_LONGEST_RUN = 160
"""Tokens; the middle of a longer run is left out."""
_VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The judged positions of one held-out sample."""

    number: int
    """Of the sample, from 1."""
    example: Example
    kl: float
    """Mean over the positions, in nats."""
    wanted: Sequence[int]
    """Tokens of the conversation itself."""
    before: Sequence[int]
    """Tokens that fp32 finds likeliest."""
    after: Sequence[int]
    """Tokens that the recipe finds likeliest."""

    @property
    def num_changed(self) -> int:
        """Positions at which the recipe chooses another token."""
        return sum(old != new for old, new in zip(self.before, self.after, strict=True))


def read_replies(
    samples: Sequence[Sample],
    examples: Sequence[Example],
    reference: Sequence[int],
    prices: Sequence[Mapping[str, Any]],
) -> list[Reply]:
    """Put together what was said of each held-out sample.

    Args:
        samples: the held-out ones.
        examples: the same, as conversations.
        reference: likeliest tokens of fp32, all judged positions one behind the other.
        prices: by sample, as `price.figures` gives them.
    """
    total = sum(len(sample.judged) for sample in samples)
    if total != len(reference):
        raise ValueError(f"{total} positions are judged, and fp32 has {len(reference)}")
    replies, start = [], 0
    for index, (sample, example, price) in enumerate(zip(samples, examples, prices, strict=True)):
        before = list(reference[start : start + len(sample.judged)])
        start += len(before)
        after = list(before)
        for place, token in price["differs"]:
            after[place] = token
        wanted = np.asarray(sample.ids)[sample.judged + 1].tolist()
        replies.append(
            Reply(
                number=index + 1,
                example=example,
                kl=float(price["kl"]),
                wanted=wanted,
                before=before,
                after=after,
            )
        )
    return replies


def marked(tokens: Sequence[int], others: Sequence[int], decode: Decode) -> Iterator[str]:
    """Write tokens as text; those that differ from the others are markup.

    Args:
        tokens: ids to write.
        others: as many ids to compare with.
        decode: turns ids into text.
    """
    pairs = zip(tokens, others, strict=True)
    for is_same, run in groupby(pairs, key=lambda pair: pair[0] == pair[1]):
        ids = [token for token, _ in run]
        for text in _shortened(ids, decode):
            yield text if is_same or isinstance(text, Html) else element("mark", _visible(text))


def _shortened(ids: Sequence[int], decode: Decode) -> Iterator[str]:
    """Decode a run; of a long one only both ends."""
    if len(ids) <= _LONGEST_RUN:
        yield decode(ids)
        return
    half = _LONGEST_RUN // 2
    yield decode(ids[:half])
    left_out = several(len(ids) - 2 * half, "token")
    yield element("span", f" … {left_out} … ", class_="left-out")
    yield decode(ids[-half:])


def _visible(text: str) -> str:
    """Make text that would leave no trace on the page visible."""
    return text if text.strip() else text.translate(_VISIBLE) or "∅"
