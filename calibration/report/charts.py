"""Bars as SVG: a chart with an axis, and the small bar of a table cell."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .markup import Html, element
from .numbers import number, percent

_ROW = 24
_BAR = 14
_LETTER = 7.4
"""Width of a letter of labels."""
_WIDTH = 1040
_AXIS = 44
_TICKS = 6
_EXACT = 1e-9
"""Of a step: what rounding may add."""
_SMALL = (96, 10)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row of a chart."""

    label: str
    value: float
    """At least zero; what is not finite is written but not drawn."""
    largest: float | None = None
    """Drawn as a whisker."""

    @property
    def text(self) -> str:
        """What stands behind the bar."""
        if self.largest is None:
            return number(self.value)
        return f"{number(self.value)}, largest {number(self.largest)}"

    @property
    def reach(self) -> float:
        """How far anything is drawn."""
        return max(_drawn(self.value), _drawn(self.largest or 0.0))


@dataclass(frozen=True, kw_only=True)
class BarChart:
    """Horizontal bars from zero, values behind them, a labelled axis below."""

    bars: Sequence[Bar]
    """From top to bottom."""
    axis: str
    """What the length means."""
    title: str
    """Says to those who cannot see it what is drawn."""

    @property
    def left(self) -> int:
        """Width of the labels."""
        return _width_of(bar.label for bar in self.bars)

    @property
    def plot(self) -> int:
        """Width of the bars."""
        return _WIDTH - self.left - _width_of(bar.text for bar in self.bars)

    @property
    def step(self) -> float:
        """From one tick to the next."""
        return _tick_step(max(bar.reach for bar in self.bars))

    @property
    def num_steps(self) -> int:
        """Ticks behind that of zero."""
        reach = max(bar.reach for bar in self.bars)
        return max(1, math.ceil(reach / self.step - _EXACT))

    def draw(self) -> Html:
        """Make the SVG."""
        height = len(self.bars) * _ROW
        name = element(
            "text",
            self.axis,
            class_="axis",
            x=self.left + self.plot / 2,
            y=height + _AXIS - 4,
            text_anchor="middle",
        )
        grid = element("g", *self._grid(height), transform=f"translate({self.left} 0)")
        rows = (
            element("g", *self._row(bar), transform=f"translate({self.left} {index * _ROW})")
            for index, bar in enumerate(self.bars)
        )
        return drawing(grid, *rows, name, width=_WIDTH, height=height + _AXIS, title=self.title)

    def _length(self, value: float) -> float:
        return self.plot * _drawn(value) / (self.step * self.num_steps)

    def _grid(self, height: int) -> Iterator[Html]:
        for index in range(self.num_steps + 1):
            value = index * self.step
            x, text = self._length(value), f"{value:.6g}"
            yield element("path", class_="grid" if index else "base", d=f"M{x:.2f} 0V{height}")
            yield element("text", text, class_="tick", x=x, y=height + 16, text_anchor="middle")

    def _row(self, bar: Bar) -> Iterator[Html]:
        middle, length, end = _ROW / 2, self._length(bar.value), self._length(bar.reach)
        yield element("title", f"{bar.label}: {bar.text}")
        yield element("text", bar.label, x=-8, y=middle + 4, text_anchor="end")
        yield element("rect", class_="bar", y=(_ROW - _BAR) / 2, width=length, height=_BAR, rx=1.5)
        if bar.largest is not None:
            line = f"M{length:.2f} {middle}H{end:.2f}M{end:.2f} {middle - 5}V{middle + 5}"
            yield element("path", class_="whisker", d=line)
        yield element("text", bar.text, x=end + 8, y=middle + 4)


def drawing(*content: Html, width: int, height: int, title: str) -> Html:
    """Make an SVG image that keeps its size and can be scrolled where the page is narrower."""
    box = f"0 0 {width} {height}"
    image = element("svg", *content, viewBox=box, width=width, role="img", aria_label=title)
    return element("div", image, class_="wide")


def share_bar(share: float, *, is_over: bool = False) -> Html:
    """Draw a share of a whole as a small bar, with its number."""
    width, height = _SMALL
    filled = width * min(1.0, max(0.0, _drawn(share)))
    bar = element(
        "svg",
        element("rect", class_="track", width=width, height=height, rx=2),
        element("rect", class_="over" if is_over else "bar", width=filled, height=height, rx=2),
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        aria_hidden="true",
    )
    return element("span", bar, percent(share), class_="share")


def _width_of(texts: Iterable[str]) -> int:
    return math.ceil(max(map(len, texts)) * _LETTER) + 12


def _tick_step(largest: float) -> float:
    """The round number, 1, 2 or 5 times a power of ten, that gives at most six steps."""
    if largest == 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest / _TICKS))
    return next(
        step * power
        for step in (1, 2, 5, 10, 20)
        if step * power * _TICKS >= largest * (1 - _EXACT)
    )


def _drawn(value: float) -> float:
    return value if math.isfinite(value) else 0.0
