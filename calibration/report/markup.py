"""HTML and SVG as values: whatever is put into an element is text unless it is `Html` already."""

from collections.abc import Iterable
from html import escape

_VOID = frozenset({"img", "meta", "br"})


class Html(str):
    """Markup that stands in the page as it is; every other string is escaped."""

    __slots__ = ()


Value = str | int | float | bool | None


def element(name: str, /, *children: str, **attributes: Value) -> Html:
    """Make an element.

    Args:
        name: of the element.
        children: text, which is escaped, or `Html`.
        attributes: by name, with `_` for `-`; one `_` at the end is dropped (`class_`). None and
            False leave an attribute out, True writes it without a value.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Html:
    """Put text and markup one behind the other."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def _attribute(name: str, value: Value) -> str:
    name = name.removesuffix("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
