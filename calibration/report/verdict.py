"""Whether the recipe passed, and its price beside the budget."""

from collections.abc import Iterator

from ..price.gate import is_within
from .charts import share_bar
from .findings import Findings
from .markup import Html, element
from .numbers import count, limit, limit_percent, number, percent, several
from .sections import Section, prose
from .tables import Column, row, table

_COLUMNS = (
    Column(name="measure"),
    Column(name="found", is_number=True),
    Column(name="allowed", is_number=True),
    Column(name="used of it"),
    Column(name="judgement"),
)


def verdict(findings: Findings) -> Html:
    """Say in one sentence whether the gate let the recipe pass, and why not."""
    name, problems = findings.recipe.name, findings.problems
    if not problems:
        sentence = f"{name} passed: on held-out samples it loses no more than its budget allows."
        return _banner("passed", "✓", sentence)
    if len(problems) == 1:
        return _banner("failed", "✗", f"{name} did not pass: {problems[0]}.")
    reasons = element("ul", *(element("li", problem) for problem in problems))
    sentence = f"{name} did not pass, for {len(problems)} reasons:"
    return _banner("failed", "✗", sentence, reasons)


def price_section(findings: Findings) -> Section:
    """Show the price, each measure beside its budget."""
    positions, samples = findings.price["positions"], len(findings.price["samples"])
    judged = (
        f"Judged on {several(samples, 'held-out sample')} and {several(positions, 'position')}: "
        "at each, the recipe and fp32 predict the next token after the same tokens."
    )
    changed = findings.gate["overridden"]
    own = f"Limits that were set for this run: {', '.join(changed)}." if changed else ""
    rows = [*_distances(findings), *_matches(findings), *_rare_experts(findings)]
    rows += _of_targets(findings)
    return Section(
        name="price",
        title="Price",
        content=(
            prose(judged, own),
            table("What the recipe loses against fp32", _COLUMNS, rows),
            element("dl", *_terms(findings), class_="terms"),
        ),
    )


def _banner(kind: str, sign: str, sentence: str, *more: Html) -> Html:
    mark = element("span", sign, class_="sign", aria_hidden="true")
    text = element("div", element("p", sentence), *more)
    return element("div", mark, text, class_=f"banner {kind}")


def _distances(findings: Findings) -> Iterator[Html]:
    price, budget = findings.price, findings.gate["budget"]
    kl, missed = price["kl_mean"], 1 - price["top1"]
    at_most = f"at most {limit(budget['kl'])}"
    yield _judged("mean KL (nats)", number(kl), at_most, kl, budget["kl"])
    yield _plain("99th percentile of KL (nats)", number(price["kl_p99"]))
    at_least = f"at least {limit_percent(budget['top1'])}"
    top1 = percent(price["top1"])
    yield _judged("top-1 agreement", top1, at_least, missed, 1 - budget["top1"])


def _matches(findings: Findings) -> Iterator[Html]:
    price, allowed = findings.price, findings.gate["budget"]["exact_match"]
    if "exact_match" not in price:
        return
    before, after = price["exact_match_reference"], price["exact_match"]
    yield _plain("exact match before, in fp32", percent(before))
    yield _plain("exact match after", percent(after))
    name, at_most = "exact match lost", f"at most {limit_percent(allowed)}"
    yield _judged(name, percent(before - after), at_most, before - after, allowed)


def _of_targets(findings: Findings) -> Iterator[Html]:
    """What the engines of targets lose, their own rounding included."""
    for name, price in findings.prices.items():
        yield _plain(f"mean KL through target {name} (nats)", number(price["kl_mean"]))
        yield _plain(f"top-1 agreement through target {name}", percent(price["top1"]))
        if "exact_match" in price:
            yield _plain(f"exact match through target {name}", percent(price["exact_match"]))


def _rare_experts(findings: Findings) -> Iterator[Html]:
    routed = findings.routed().values()
    if "experts" not in findings.recipe.parts or not routed:
        return
    minimum, allowed = findings.min_tokens_per_expert, findings.gate["max_fallback_share"]
    rare = sum(one.num_below(minimum) for one in routed)
    total = sum(len(one.text) for one in routed)
    found = f"{count(rare)} of {count(total)}"
    name = f"experts with fewer than {count(minimum)} tokens"
    yield _judged(name, found, f"at most {limit_percent(allowed)}", rare / total, allowed)


def _judged(name: str, found: str, allowed: str, lost: float, most: float) -> Html:
    """A row with a limit: how much of what may be lost is lost."""
    is_over = not is_within(lost, most)
    share = lost / most if most > 0 else float(is_over)
    used = share_bar(max(share, 0.0), is_over=is_over)
    word = element("strong", "✗ over") if is_over else "✓ within"
    return row(_COLUMNS, name, found, allowed, used, word, class_="over" if is_over else None)


def _plain(name: str, found: str) -> Html:
    return row(_COLUMNS, name, found, "", "", "")


def _terms(findings: Findings) -> Iterator[Html]:
    terms = {
        "KL": "how far the recipe's distribution of the next token is from fp32's; 0 is equal",
        "top-1 agreement": "share of positions with the same likeliest token, where fp32 is not "
        "torn between two",
        "exact match": "share of samples in which every token of the known reply is the likeliest",
    }
    if "exact_match" not in findings.price:
        del terms["exact match"]
    for term, meaning in terms.items():
        yield element("div", element("dt", term), element("dd", meaning))
