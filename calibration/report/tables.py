"""Tables whose caption, heads and alignment say what they hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .markup import Html, element


@dataclass(frozen=True, kw_only=True)
class Column:
    """The head of one column."""

    name: str
    is_number: bool = False

    @property
    def alignment(self) -> str | None:
        """Class of its cells."""
        return "number" if self.is_number else None


def table(caption: str, columns: Sequence[Column], *bodies: Iterable[Html]) -> Html:
    """Make a table of rows that `row` made; every body is a group of rows."""
    heads = (element("th", one.name, scope="col", class_=one.alignment) for one in columns)
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *heads)),
            *(element("tbody", *rows) for rows in bodies),
        ),
        class_="wide",
    )


def row(columns: Sequence[Column], first: str, *others: str, class_: str | None = None) -> Html:
    """Make a row; its first cell is its head."""
    cells = (
        element("td", cell, class_=column.alignment)
        for column, cell in zip(columns[1:], others, strict=True)
    )
    return element("tr", element("th", first, scope="row"), *cells, class_=class_)
