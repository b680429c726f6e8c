"""What the recipe loses at each turn of conversations: whether it grows with what lies behind."""

from collections.abc import Iterator, Mapping
from typing import Any

from .charts import Bar, BarChart
from .findings import Findings
from .markup import Html, element
from .numbers import count, number, percent
from .sections import Section, prose
from .tables import Column, row, table

_AXIS = "mean KL in nats"
_COLUMNS = (
    Column(name="turn"),
    Column(name="computed by"),
    Column(name="conversations", is_number=True),
    Column(name="positions", is_number=True),
    Column(name="mean KL (nats)", is_number=True),
    Column(name="top-1 agreement", is_number=True),
    Column(name="exact match", is_number=True),
    Column(name="in fp32", is_number=True),
)
_RECIPE = "recipe"
"""The recipe itself, apart from any target."""


def turns_section(findings: Findings) -> Section | None:
    """Show the figures of each turn; nothing if no conversation has two."""
    turns = findings.turns
    if len(turns) < 2:
        return None
    owners = [_RECIPE, *(name for name in findings.prices if _of_target(findings, name, turns[0]))]
    bars = [
        Bar(label=f"turn {turn['turn']}, {owner}", value=_figures(findings, owner, turn)["kl_mean"])
        for owner in owners
        for turn in turns
    ]
    title = f"Mean KL at {len(turns)} turns of conversations; the table below has more"
    bodies = (list(_rows(findings, owners, turn)) for turn in turns)
    return Section(
        name="turns",
        title="Turn by turn",
        content=(
            prose(
                "Conversations of the held-out set, or its questions asked one after the other: "
                "each reply is judged behind all earlier turns, which stand as the set has them.",
                "A loss that grew with what lies in the cache would be seen here.",
                "Rows of a target are what its own engine computes, its kernels' rounding included;"
                " `verify` measured them last.",
            ),
            element("figure", BarChart(bars=bars, axis=_AXIS, title=title).draw()),
            table("What each turn loses against fp32", _COLUMNS, *bodies),
        ),
    )


def _rows(findings: Findings, owners: list[str], turn: Mapping[str, Any]) -> Iterator[Html]:
    sizes = (count(turn["conversations"]), count(turn["positions"]))
    before = percent(turn["exact_match_reference"]) if "exact_match_reference" in turn else ""
    for owner in owners:
        found = _figures(findings, owner, turn)
        after = percent(found["exact_match"]) if "exact_match" in found else ""
        lost = (number(found["kl_mean"]), percent(found["top1"]))
        yield row(_COLUMNS, str(turn["turn"]), owner, *sizes, *lost, after, before)


def _figures(findings: Findings, owner: str, turn: Mapping[str, Any]) -> Mapping[str, Any]:
    return turn if owner == _RECIPE else _of_target(findings, owner, turn)


def _of_target(findings: Findings, name: str, turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take the figures of one turn from those of a target; none if it was not measured."""
    start = f"turn_{turn['turn']}_"
    found = findings.prices[name]
    return {key.removeprefix(start): value for key, value in found.items() if key.startswith(start)}
