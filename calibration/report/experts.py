"""Which experts calibration saw, and how the recipe changes their choice."""

from collections.abc import Iterator
from statistics import median

from .charts import share_bar
from .findings import Findings, Routed
from .heat_map import HeatMap, Scale
from .markup import Html, element
from .numbers import count, number
from .sections import Section, prose
from .tables import Column, row, table

_COLUMNS = (
    Column(name="layer"),
    Column(name="fewest", is_number=True),
    Column(name="median", is_number=True),
    Column(name="most", is_number=True),
    Column(name="below minimum", is_number=True),
    Column(name="same choice"),
    Column(name="tokens with another choice", is_number=True),
    Column(name="margin there", is_number=True),
)
_TERMS = (
    "Same choice is the share of chosen experts that fp32 chooses too, on the held-out samples.",
    "The margin is the score of the last chosen expert minus that of the first not chosen, "
    "in fp32, averaged over the tokens of which any choice changed: small where it was close.",
)


def experts_section(findings: Findings) -> Section | None:
    """Show the tokens of each expert and the agreement of choices; nothing without experts."""
    routed = findings.routed()
    if not routed:
        return None
    minimum = findings.min_tokens_per_expert
    scale = Scale.of([tokens for one in routed.values() for tokens in (*one.text, *one.image)])
    mark = f"fewer than {count(minimum)} tokens, text and image together"
    rows = (_layer_row(layer, one, findings) for layer, one in routed.items())
    return Section(
        name="experts",
        title="Experts",
        content=(
            prose(
                "Tokens that were routed to each expert while its scales were found.",
                f"One with fewer than {count(minimum)} is measured by the tokens of its layer.",
            ),
            scale.legend(mark),
            *_maps(routed, scale, minimum),
            prose(*_TERMS),
            table("Tokens of the experts and agreement of their choice, by layer", _COLUMNS, rows),
        ),
    )


def _maps(routed: dict[str, Routed], scale: Scale, minimum: int) -> Iterator[Html]:
    is_rare = {layer: [total < minimum for total in one.totals] for layer, one in routed.items()}
    kinds = {
        "text": {layer: one.text for layer, one in routed.items()},
        "image": {layer: one.image for layer, one in routed.items()},
    }
    for kind, rows in kinds.items():
        tokens = sum(sum(row) for row in rows.values())
        name = f"{kind.capitalize()} tokens"
        heat = HeatMap(
            rows=rows,
            is_rare=is_rare,
            scale=scale,
            what=f"{kind} tokens",
            title=f"{name} of each expert, by layer; the table below has the extremes",
        )
        caption = element("figcaption", f"{name}, {count(tokens)} routed in all layers")
        yield element("figure", caption, heat.draw())


def _layer_row(layer: str, routed: Routed, findings: Findings) -> Html:
    totals = routed.totals
    extremes = (count(min(totals)), count(round(median(totals))), count(max(totals)))
    rare = count(routed.num_below(findings.min_tokens_per_expert))
    found = findings.agreement(layer)
    if not found:
        return row(_COLUMNS, layer, *extremes, rare, "", "", "")
    same = share_bar(found["agreement"])
    margin = "" if found["flip_margin"] is None else number(found["flip_margin"])
    return row(_COLUMNS, layer, *extremes, rare, same, count(found["flipped_tokens"]), margin)
