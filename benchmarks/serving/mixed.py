"""The same questions asked of a server in two ways, in turn: throughput, and what each waits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from engines.load.asked import Question
from engines.load.endpoint import Wishes
from engines.load.opening import connect
from engines.load.report import LoadReport
from engines.load.run import Load, run_load

_TIMEOUT_S = 3600.0
_PERCENTILES = ("p50", "p99")


@dataclass(frozen=True, kw_only=True)
class Way:
    """A server, and how many clients it has, each asking again when it was answered."""

    url: str
    clients: int


def time_ways(
    ways: Mapping[str, Way], rounds: Sequence[Sequence[Question]], *, max_new_tokens: int
) -> dict[str, Any]:
    """Ask each round's questions in both ways, one after the other, the order changing.

    Args:
        ways: two; ratios are of the first to the second.
        rounds: questions; none twice, so that no answer of one is found in a slot by another.
        max_new_tokens: of each answer.

    Returns:
        Medians over the rounds, of the figures and of each round's ratios, and every round.
    """
    wishes = Wishes(max_new_tokens=max_new_tokens, timeout_s=_TIMEOUT_S)
    endpoints = {name: connect(way.url, wishes) for name, way in ways.items()}
    found = []
    for number, questions in enumerate(rounds):
        order = list(ways)[:: 1 if number % 2 == 0 else -1]
        figures = {}
        for name in order:
            load = Load(concurrency=ways[name].clients, num_warmups=0)
            report = LoadReport(
                endpoint=endpoints[name].description,
                load=load,
                max_new_tokens=max_new_tokens,
                limits={},
                samples=run_load(endpoints[name], questions, load),
            )
            figures[name] = _figures(report)
        found.append({name: figures[name] for name in ways})
    return {
        "clients": {name: way.clients for name, way in ways.items()},
        "requests_per_round": len(rounds[0]),
        "with_images": [sum(one.num_images > 0 for one in each) for each in rounds],
        "max_new_tokens": max_new_tokens,
        "medians": {name: _medians([one[name] for one in found]) for name in ways},
        "ratios": _medians([_ratios(*one.values()) for one in found]),
        "rounds": found,
    }


def _figures(report: LoadReport) -> dict[str, float]:
    assert not report.failures, report.failures
    figures = {
        "requests_per_s": len(report.samples) / report.duration_s,
        "new_tokens_per_s": report.tokens()["new"] / report.duration_s,
    }
    for measure in ("time_to_first_token_s", "time_per_token_s", "total_s"):
        spread = report.spread(measure)
        assert spread is not None
        figures |= {f"{measure}_{share}": spread.percentiles[share] for share in _PERCENTILES}
    return figures


def _medians(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: median(one[name] for one in figures) for name in figures[0]}


def _ratios(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: first[name] / second[name] for name in first}
