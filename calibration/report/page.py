"""What quantisation cost, as one page that needs nothing else.

No script, no request: style and pictures are in the file, and the page forbids itself to load
anything. Equal inputs give equal bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from export.recipe.recipe import Recipe
from runtime.files import write_bytes

from ..data.examples import Example
from ..data.samples import Sample
from ..price.distance import Reference
from .choices import choices_section
from .experts import experts_section
from .findings import Findings
from .graphs import graphs_section
from .markup import Html, element, join
from .parts import recipe_section, weights_section
from .replies import Decode, read_replies
from .samples import samples_section
from .sections import Section, contents
from .turns import turns_section
from .verdict import price_section, verdict

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_CACHED = "models--"


def write_report(
    path: Path,
    quality: Mapping[str, Any],
    *,
    recipe: Recipe,
    samples: Sequence[Sample],
    examples: Sequence[Example],
    reference: Reference,
    decode: Decode,
    gate: Mapping[str, Any],
    problems: Sequence[str],
    prices: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> None:
    """Write the page.

    Args:
        path: of the file.
        quality: the content of `quality.json`.
        recipe: the one that was measured.
        samples: the held-out ones.
        examples: the same, as conversations.
        reference: what fp32 predicts at their judged positions, and behind these at others.
        decode: turns token ids into text.
        gate: the limits, as `GateLimits.record` gives them.
        problems: why the gate refuses; empty if it does not.
        prices: what targets lose, as `price.target` gives it.

    Raises:
        InputError: a picture is no longer there.
    """
    findings = Findings(quality=quality, recipe=recipe, gate=gate, problems=problems, prices=prices)
    judged = sum(len(sample.judged) for sample in samples)
    likeliest = reference.part(0, judged).tokens[:, 0].tolist()
    replies = read_replies(samples, examples, likeliest, findings.price["samples"])
    sections = [
        price_section(findings),
        turns_section(findings),
        recipe_section(recipe),
        choices_section(findings.choices, findings.gate["budget"]["kl"]),
        graphs_section(findings),
        weights_section(findings),
        experts_section(findings),
        samples_section(replies, recipe.name, decode),
    ]
    page = _page(findings, quality["checkpoint"], [one for one in sections if one is not None])
    write_bytes(path, page.encode(errors="replace"))


def checkpoint_name(folder: Path) -> str:
    """Name a checkpoint by its folder, or as `owner/name` where that is in the hub's cache."""
    whole = folder.resolve()
    repository = whole.parents[1].name if len(whole.parents) > 1 else ""
    if whole.parent.name == "snapshots" and repository.startswith(_CACHED):
        return repository.removeprefix(_CACHED).replace("--", "/", 1)
    return whole.name


def _page(findings: Findings, checkpoint_name: str, sections: list[Section]) -> str:
    title = f"{checkpoint_name} in {findings.recipe.name}: what quantisation cost"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(_STYLE.read_text(encoding="utf-8"))),
    )
    top = element(
        "header",
        element("p", "What quantisation cost", class_="kind"),
        element("h1", checkpoint_name, " ", element("span", f"in {findings.recipe.name}")),
        element("p", findings.recipe.summary, class_="summary"),
        verdict(findings),
        contents(sections),
    )
    body = element("body", element("main", top, *(one.draw() for one in sections)))
    return join([Html("<!doctype html>\n"), element("html", head, body, lang="en"), "\n"])
