"""What a search for a recipe tried: each part in each format, alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import share_bar
from .markup import Html, element
from .numbers import number, percent, size
from .sections import Section, prose
from .tables import Column, row, table

_COLUMNS = (
    Column(name="part"),
    Column(name="format"),
    Column(name="mean KL (nats)", is_number=True),
    Column(name="of the KL budget"),
    Column(name="top-1 agreement", is_number=True),
    Column(name="read for one token", is_number=True),
    Column(name="choice"),
)


def choices_section(choices: Sequence[Mapping[str, Any]], budget: float) -> Section | None:
    """Show part, format, loss and size of every trial; nothing if nothing was tried.

    Args:
        choices: `part`, `format`, `kl`, `top1`, `active_bytes` and `chosen` of each.
        budget: the most that the mean KL of the whole recipe may be.
    """
    if not choices:
        return None
    parts = dict.fromkeys(str(one["part"]) for one in choices)
    bodies = ([_row(one, budget) for one in choices if one["part"] == part] for part in parts)
    return Section(
        name="choices",
        title="Sensitivity",
        content=(
            prose(
                "Each part in each format alone, everything else in the base type.",
                "Vision and projector are read once for an image, not for each token.",
            ),
            table("Loss and size of each trial", _COLUMNS, *bodies),
        ),
    )


def _row(one: Mapping[str, Any], budget: float) -> Html:
    chosen = element("strong", "✓ chosen") if one["chosen"] else ""
    share = one["kl"] / budget if budget > 0 else float(one["kl"] > 0)
    used = share_bar(share, is_over=share > 1)
    figures = (number(one["kl"]), used, percent(one["top1"]), size(one["active_bytes"]))
    class_ = "chosen" if one["chosen"] else None
    return row(_COLUMNS, str(one["part"]), str(one["format"]), *figures, chosen, class_=class_)
