"""The recipe, part by part, and what rounding its weights lost."""

from collections.abc import Iterator, Sequence

from export.recipe.recipe import PARTS, Part, PartRecipe, Recipe

from .charts import Bar, BarChart
from .findings import Findings, WeightError
from .markup import Html, element
from .numbers import count, number
from .sections import Section, prose
from .tables import Column, row, table

_MEANINGS: dict[Part, str] = {
    "vision": "image encoder",
    "projector": "image rows to decoder width",
    "attention": "queries, latent, output",
    "kv_b": "latent to keys and values",
    "dense_mlp": "MLP of the first layers",
    "experts": "routed experts",
    "shared_experts": "experts of every token",
    "head": "logits",
}
_FORMATS = tuple(
    Column(name=name) for name in ("part", "what it is", "weights", "activations", "found by")
)
_ERRORS = (
    Column(name="part"),
    Column(name="matrices", is_number=True),
    Column(name="mean", is_number=True),
    Column(name="largest", is_number=True),
    Column(name="largest in"),
)


def recipe_section(recipe: Recipe) -> Section:
    """Show the format of every part."""
    rest = f"Everything else stays in {recipe.base}; the router stays in fp32."
    rows = [*(_format_row(part, recipe) for part in PARTS), *_other_rows(recipe)]
    content = (table("Formats by part", _FORMATS, rows), prose(rest))
    return Section(name="recipe", title="Recipe", content=content)


def weights_section(findings: Findings) -> Section | None:
    """Show the error of the weights by part; nothing if no weights are rounded."""
    found = findings.weight_errors()
    if not found:
        return None
    bars = [
        Bar(label=part, value=_mean(errors), largest=_largest(errors).error)
        for part, errors in found.items()
    ]
    chart = BarChart(
        bars=bars,
        title="Mean and largest relative error of the weights of each part",
        axis="relative error of a matrix: mean (bar) and largest (whisker)",
    )
    rows = (_error_row(part, errors) for part, errors in found.items())
    return Section(
        name="weights",
        title="Error of the weights, by part",
        content=(
            prose("|Q(W) - W| / |W| of each matrix W: what rounding it to Q(W) changes."),
            element("figure", chart.draw()),
            table("Where the largest are", _ERRORS, rows),
        ),
    )


def _format_row(part: Part, recipe: Recipe) -> Html:
    form, meaning = recipe.parts.get(part), _MEANINGS[part]
    if form is None:
        return row(_FORMATS, part, meaning, recipe.base, "not rounded", "", class_="plain")
    activations = str(form.activations) if form.activations else "not rounded"
    return row(_FORMATS, part, meaning, str(form.weights), activations, _method(form))


def _other_rows(recipe: Recipe) -> Iterator[Html]:
    """What is not a matrix, where the recipe rounds it."""
    if recipe.embedding is not None:
        scales = "a scale for each token"
        yield row(_FORMATS, "embedding", "rows of token ids", recipe.embedding, "", scales)
    if recipe.cache is not None:
        scales = "scales of each token as it is written"
        yield row(_FORMATS, "cache", "latents of older tokens", "", str(recipe.cache), scales)


def _method(form: PartRecipe) -> str:
    """Say what calibration does for a part beyond rounding to nearest."""
    words = []
    if form.activations and form.activations.scale == "static":
        words.append(f"activation scale by {form.activations.observer}")
    if form.balance == "smooth":
        words.append(f"smoothing {number(form.strength)}")
    elif form.balance != "none":
        words.append(f"{form.balance} scaling")
    if form.clip:
        words.append("clipping search")
    return ", ".join(words)


def _error_row(part: Part, errors: Sequence[WeightError]) -> Html:
    worst = _largest(errors)
    where = f"{worst.graph} {worst.parameter}"
    mean, largest = number(_mean(errors)), number(worst.error)
    return row(_ERRORS, part, count(len(errors)), mean, largest, element("code", where))


def _mean(errors: Sequence[WeightError]) -> float:
    return sum(one.error for one in errors) / len(errors)


def _largest(errors: Sequence[WeightError]) -> WeightError:
    return max(errors, key=lambda one: one.error)
