"""The price of a recipe: what it loses on held-out samples, in all and sample by sample.

Samples are teacher-forced: the reply stands in the input, and each of its tokens is predicted.
Exact match counts the samples whose tokens are all the likeliest ones, so that greedy decoding
writes just that reply.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..data.samples import Sample
from ..digits import six_digits
from .distance import Distance, Reference


def price(
    samples: Sequence[Sample], references: Sequence[Reference], distances: Sequence[Distance]
) -> dict[str, Any]:
    """Sum up the judged positions of all samples.

    Returns:
        `kl_mean`, `kl_p99`, `top1`, `positions`; where there are replies `exact_match` and
        `exact_match_reference`; and `samples`: for each `kl`, and `differs`, pairs of the number of
        a judged position and the token that is chosen there instead of the reference's; and
        `replies`: how many of the samples exact match counts.
    """
    found = _figures(samples, references, distances)
    found["replies"] = sum(sample.has_reply and len(sample.judged) > 0 for sample in samples)
    found["samples"] = [_sample_price(distance) for distance in distances]
    return found


def by_turn(
    samples: Sequence[Sample], references: Sequence[Reference], distances: Sequence[Distance]
) -> list[dict[str, Any]]:
    """Sum up samples of conversations by the turn that they are.

    Returns:
        For each turn `turn`, `conversations` and the figures of `price` without `samples`; in
        order.
    """
    found = []
    for turn in sorted({sample.turn for sample in samples}):
        places = [place for place, sample in enumerate(samples) if sample.turn == turn]
        figures = _figures(
            [samples[place] for place in places],
            [references[place] for place in places],
            [distances[place] for place in places],
        )
        found.append({"turn": turn, "conversations": len(places), **figures})
    return found


def _figures(
    samples: Sequence[Sample], references: Sequence[Reference], distances: Sequence[Distance]
) -> dict[str, Any]:
    found: dict[str, Any] = dict(Distance.join(list(distances)).figures())
    forced = [
        (torch.from_numpy(sample.ids[sample.judged + 1]), reference, distance)
        for sample, reference, distance in zip(samples, references, distances, strict=True)
        if sample.has_reply and len(sample.judged)
    ]
    if forced:
        right = [bool((distance.chosen == ids).all()) for ids, _, distance in forced]
        wanted = [bool((reference.tokens[:, 0] == ids).all()) for ids, reference, _ in forced]
        found["exact_match"] = sum(right) / len(right)
        found["exact_match_reference"] = sum(wanted) / len(wanted)
    return found


def _sample_price(distance: Distance) -> dict[str, Any]:
    places = (~distance.agrees).nonzero().flatten().tolist()
    kl = float(distance.kl.mean()) if len(distance.kl) else 0.0
    return {
        "kl": six_digits(kl),
        "differs": [[place, int(distance.chosen[place])] for place in places],
    }
