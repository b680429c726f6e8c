"""A run as a picture: for each measure, which share of the requests took at most how long."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from .report import GROUPS, MEASURES, LoadReport

_TITLES = {
    "time_to_first_token_s": "to the first token",
    "time_per_token_s": "between two tokens",
    "total_s": "to the end",
}
_WIDTH, _HEIGHT, _GAP, _TOP, _LEFT = 300, 200, 60, 56, 44
_TICKS = 4
_SHARES = (0.5, 0.9, 0.99)
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-weight: 600 } .small { font-size: 11px; fill: #555 }
.page { fill: #fff } .grid { stroke: #ccc } .base { stroke: #555 }
.limit { stroke: #b00; stroke-dasharray: 4 3 }
.line { fill: none; stroke-width: 2 }
.s0 { stroke: #1f6fb2 } .s1 { stroke: #c46210 } .s2 { stroke: #3a8a3a }
@media (prefers-color-scheme: dark) {
text { fill: #eee } .small { fill: #aaa }
.page { fill: #161616 } .grid { stroke: #444 } .base { stroke: #aaa } .limit { stroke: #f66 }
.s0 { stroke: #6db3f2 } .s1 { stroke: #f0a35c } .s2 { stroke: #7ccf7c }
}
"""


def draw_picture(report: LoadReport) -> str:
    """Write an SVG: one panel for each measure, one line for each group that has requests."""
    width = _LEFT + len(MEASURES) * (_WIDTH + _GAP) - _GAP // 2
    height = _TOP + _HEIGHT + 64
    body = [
        element
        for index, measure in enumerate(MEASURES)
        for element in _panel(report, measure, _LEFT + index * (_WIDTH + _GAP))
    ]
    title = f"{report.endpoint['model']}: {_load_text(report)}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" role="img" aria-label="{escape(title)}">',
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{width}" height="{height}"/>',
            _text(_LEFT, 20, title, "title", anchor="start"),
            *body,
            *_legend(report, height - 10),
            "</svg>\n",
        ]
    )


def _load_text(report: LoadReport) -> str:
    load = report.load
    how = f"{load.concurrency} at a time" if load.rate is None else f"{load.rate:g} a second"
    failed = sum(report.failures.values())
    return f"{len(report.samples)} requests, {how}, {failed} failed"


def _panel(report: LoadReport, measure: str, left: int) -> Iterator[str]:
    values = {group: sorted(report.values(measure, group)) for group in _groups(report)}
    limit = report.limits.get(measure)
    largest = max([*(found[-1] for found in values.values() if found), limit or 0.0])
    step = _tick_step(largest)
    right = step * max(1, math.ceil(largest / step))
    yield _text(left + _WIDTH / 2, _TOP - 12, _TITLES[measure], "title")
    for share in (0.0, *_SHARES):
        y = _y(share)
        yield f'<path class="{"grid" if share else "base"}" d="M{left} {y:.1f}h{_WIDTH}"/>'
        if share and left == _LEFT:
            yield _text(left - 6, y + 4, f"{share:.0%}", "small", anchor="end")
    for index in range(round(right / step) + 1):
        x = left + _WIDTH * index * step / right
        yield _text(x, _TOP + _HEIGHT + 16, f"{index * step:.6g} s", "small")
    for number, group in enumerate(GROUPS):
        if values.get(group):
            path = _steps(values[group], left, right)
            yield f'<path class="line s{number}" d="{path}"/>'
    if limit is not None:
        x = left + _WIDTH * limit / right
        yield f'<path class="limit" d="M{x:.1f} {_TOP}v{_HEIGHT}"/>'


def _steps(values: Sequence[float], left: int, right: float) -> str:
    """Draw the share of values up to each one; from below, over the first to the last."""
    parts = [f"M{left + _WIDTH * values[0] / right:.1f} {_y(0.0):.1f}"]
    for index, value in enumerate(values, start=1):
        parts.append(f"H{left + _WIDTH * value / right:.1f}V{_y(index / len(values)):.1f}")
    return "".join(parts)


def _y(share: float) -> float:
    return _TOP + _HEIGHT * (1 - share)


def _groups(report: LoadReport) -> list[str]:
    """Leave out the parts where there is only one of them."""
    parts = [group for group in GROUPS[1:] if report.answered(group)]
    return [GROUPS[0], *(parts if len(parts) > 1 else ())]


def _legend(report: LoadReport, y: int) -> Iterator[str]:
    x = _LEFT
    for group in _groups(report):
        number = GROUPS.index(group)
        yield f'<path class="line s{number}" d="M{x} {y - 4}h24"/>'
        yield _text(x + 30, y, group, "small", anchor="start")
        x += 140


def _text(x: float, y: float, text: str, kind: str, *, anchor: str = "middle") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _tick_step(largest: float) -> float:
    """Give the round number that makes at most so many steps."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest / _TICKS))
    return next(
        step * power for step in (1, 2, 5, 10, 20) if step * power * _TICKS >= largest * (1 - 1e-9)
    )
