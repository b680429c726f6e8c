"""Held-out samples side by side: pictures, question, what fp32 and the recipe write."""

import base64
import io
import math
from collections.abc import Iterator, Sequence

from runtime.prompt.images import load_image
from runtime.prompt.messages import Image, ImageSource

from .markup import Html, element
from .numbers import count, number, several
from .replies import Decode, Reply, marked
from .sections import Section, prose

MAX_CHANGED, MAX_UNCHANGED = 8, 4
THUMBNAIL = 256
"""Longest side, in pixels."""
_MAX_PICTURES = 6
_MAX_QUESTION = 800


def samples_section(replies: Sequence[Reply], recipe: str, decode: Decode) -> Section:
    """Show the samples that lost most, then some in which no token changed.

    Args:
        replies: of all held-out samples.
        recipe: its name.
        decode: turns ids into text.
    """
    most = sorted(replies, key=lambda reply: (-_rank(reply.kl), reply.number))[:MAX_CHANGED]
    shown = {reply.number for reply in most}
    same = [reply for reply in replies if not reply.num_changed and reply.number not in shown]
    groups = {
        f"The {count(len(most))} with the largest KL": most,
        "Some in which no token changed": same[:MAX_UNCHANGED],
    }
    changed = sum(reply.num_changed > 0 for reply in replies)
    verb = "has" if changed == 1 else "have"
    intro = prose(
        f"{count(changed)} of {several(len(replies), 'sample')} {verb} a token that changed.",
        "Each token is the likeliest after the sample's own text up to there, not after what was "
        "written before it; tokens that differ are marked.",
    )
    content = [
        markup
        for title, some in groups.items()
        if some
        for markup in (element("h3", title), _cards(some, recipe, decode))
    ]
    return Section(name="samples", title="Held-out samples", content=(intro, *content))


def _cards(replies: Sequence[Reply], recipe: str, decode: Decode) -> Html:
    return element("div", *(_card(reply, recipe, decode) for reply in replies), class_="cards")


def _card(reply: Reply, recipe: str, decode: Decode) -> Html:
    kind = "" if reply.example.kind == "all" else f" · {reply.example.kind}"
    changed = f"{count(reply.num_changed)} of {several(len(reply.before), 'token')} changed"
    head = element(
        "header",
        element("h4", f"Sample {reply.number}{kind}"),
        element("p", f"KL {number(reply.kl)} nats · {changed}"),
    )
    lines = element("dl", *_lines(reply, recipe, decode))
    return element("article", head, *_pictures(reply), lines, class_="card")


def _lines(reply: Reply, recipe: str, decode: Decode) -> Iterator[Html]:
    yield _line("question", _cut(reply.example.question))
    if list(reply.wanted) != list(reply.before):
        name = "reply in the set" if reply.example.reply else "the text itself"
        yield _line(name, *marked(reply.wanted, reply.wanted, decode))
    yield _line("fp32 writes", *marked(reply.before, reply.after, decode))
    yield _line(f"{recipe} writes", *marked(reply.after, reply.before, decode))


def _line(name: str, *content: str) -> Html:
    return element("div", element("dt", name), element("dd", *content, dir="auto"))


def _pictures(reply: Reply) -> Iterator[Html]:
    parts = [part for message in reply.example.messages for part in message.parts]
    sources = [part.source for part in parts if isinstance(part, Image)]
    shown = [
        _thumbnail(source, f"Picture {place} of sample {reply.number}")
        for place, source in enumerate(sources[:_MAX_PICTURES], start=1)
    ]
    if len(sources) > len(shown):
        shown.append(element("span", f"and {len(sources) - len(shown)} more"))
    if shown:
        yield element("div", *shown, class_="pictures")


def _thumbnail(source: ImageSource, name: str) -> Html:
    picture = load_image(source)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    picture.save(content, format="PNG")
    url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return element("img", src=url, alt=name, width=picture.width, height=picture.height)


def _cut(text: str) -> str:
    rest = len(text) - _MAX_QUESTION
    return text if rest <= 0 else f"{text[:_MAX_QUESTION]} … ({count(rest)} more characters)"


def _rank(kl: float) -> float:
    return kl if math.isfinite(kl) else math.inf
