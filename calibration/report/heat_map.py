"""A heat map of layers and experts: one cell for each, darker or lighter by its tokens."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .charts import drawing
from .markup import Html, element
from .numbers import count

NUM_SHADES = 6
_WIDTH = 1040
_NARROWEST, _WIDEST = 14, 46
_WRITTEN_FROM = 36
"""Cells of this width have room for their number."""
_HEIGHT = 18
_LEFT = 74
_TOP = 38
_MARK = 7


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Which counts have which shade."""

    starts: tuple[int, ...]
    """The smallest count of each shade, rising from 1."""
    largest: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> "Scale":
        """Divide the range of the counts, without the rarest twentieth, into equal ratios."""
        routed = sorted(count for count in counts if count) or [1]
        low, high = routed[len(routed) // 20], routed[-1]
        edges = (low * (high / low) ** (step / NUM_SHADES) for step in range(1, NUM_SHADES))
        starts = {1} | {edge for edge in map(_round, edges) if 1 < edge <= high}
        return cls(starts=tuple(sorted(starts)), largest=high)

    def shade(self, tokens: int) -> int:
        """Number of the shade from 1, 0 for no tokens."""
        return bisect_right(self.starts, tokens)

    def ranges(self) -> list[str]:
        """What each shade from 1 on means."""
        ends = [*(start - 1 for start in self.starts[1:]), self.largest]
        return [
            count(start) if start == end else f"{count(start)} to {count(end)}"
            for start, end in zip(self.starts, ends, strict=True)
        ]

    def legend(self, mark: str) -> Html:
        """List what the shades mean, and the mark of a cell."""
        place = {"x": 1, "y": 1, "width": 22, "height": 14}
        shades = enumerate(["no tokens", *self.ranges()])
        entries = [_entry(text, element("rect", class_=f"h{i}", **place)) for i, text in shades]
        marked = element("rect", class_="h1", **place), _mark(23, 1)
        return element("ul", *entries, _entry(mark, *marked), class_="legend")


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One row for each layer, one column for each expert."""

    rows: Mapping[str, Sequence[int]]
    """Tokens of each expert, by layer."""
    is_rare: Mapping[str, Sequence[bool]]
    """Which experts get a mark, by layer."""
    scale: Scale
    what: str
    """The counted tokens, for the tooltips: `text tokens`."""
    title: str
    """Says to those who cannot see it what is drawn."""

    @property
    def num_experts(self) -> int:
        """Columns."""
        return max(len(tokens) for tokens in self.rows.values())

    @property
    def cell(self) -> int:
        """Width of a column."""
        return max(_NARROWEST, min(_WIDEST, (_WIDTH - _LEFT) // self.num_experts))

    def draw(self) -> Html:
        """Make the SVG."""
        rows = (self._row(index, layer) for index, layer in enumerate(self.rows))
        width = _LEFT + self.cell * self.num_experts + 2
        height = _TOP + _HEIGHT * len(self.rows) + 2
        return drawing(*self._heads(), *rows, width=width, height=height, title=self.title)

    def _heads(self) -> Iterator[Html]:
        middle = _LEFT + self.cell * self.num_experts / 2
        yield element("text", "expert", class_="axis", x=middle, y=12, text_anchor="middle")
        for expert in range(0, self.num_experts, 1 if self.cell >= 20 else 4):
            x = _LEFT + self.cell * (expert + 0.5)
            yield element("text", str(expert), class_="tick", x=x, y=_TOP - 6, text_anchor="middle")

    def _row(self, index: int, layer: str) -> Html:
        y = _TOP + _HEIGHT * index
        label = element("text", layer, class_="label", x=_LEFT - 8, y=y + 13, text_anchor="end")
        cells = (
            element("g", *self._cell(layer, expert, y), transform=f"translate({x} {y})")
            for expert in range(len(self.rows[layer]))
            for x in (_LEFT + self.cell * expert,)
        )
        return element("g", label, *cells)

    def _cell(self, layer: str, expert: int, y: int) -> Iterator[Html]:
        tokens, is_rare = self.rows[layer][expert], self.is_rare[layer][expert]
        shade = self.scale.shade(tokens)
        rare = ", below the minimum" if is_rare else ""
        yield element("title", f"{layer}, expert {expert}: {count(tokens)} {self.what}{rare}")
        yield element("rect", class_=f"h{shade}", width=self.cell - 1, height=_HEIGHT - 1)
        if is_rare:
            yield _mark(self.cell - 1, 0)
        if self.cell >= _WRITTEN_FROM:
            text, middle = _short(tokens), (self.cell - 1) / 2
            yield element("text", text, class_=f"t{shade}", x=middle, y=13, text_anchor="middle")


def _entry(text: str, *swatch: Html) -> Html:
    image = element("svg", *swatch, viewBox="0 0 24 16", width=24, height=16, aria_hidden="true")
    return element("li", image, text)


def _mark(right: int, top: int) -> Html:
    """Draw a filled corner: it is seen on every shade and leaves a number readable."""
    return element("path", class_="rare", d=f"M{right - _MARK} {top}h{_MARK}v{_MARK}Z")


def _short(tokens: int) -> str:
    return str(tokens) if tokens < 10_000 else f"{tokens // 1000}k"


def _round(value: float) -> int:
    """Two digits, the second one 0 or 5."""
    power = 10.0 ** math.floor(math.log10(value))
    return round(round(value / power * 2) / 2 * power)
