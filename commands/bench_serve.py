"""`bench serve`: what many clients get of an endpoint."""

from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import KimiVLError

from . import load_flags, options, output, progress
from .flag_groups import with_flag_groups
from .load_flags import LoadFlags, QuestionFlags, WishFlags

if TYPE_CHECKING:
    from engines.load.report import LoadReport


@with_flag_groups
def bench_serve(
    url: load_flags.UrlArgument,
    *,
    asked: QuestionFlags,
    load: LoadFlags,
    wishes: WishFlags,
    within: load_flags.WithinOption = None,
    picture: load_flags.PictureOption = None,
    json: options.JsonOption = False,
) -> None:
    """Time an endpoint as many clients see it.

    So many clients at a time, or requests at random times (a Poisson process). A request counts
    from when it was due. Fails if nothing is answered.
    """
    coming = load.make_load()
    from engines.load.endpoint import connect
    from engines.load.report import LoadReport, parse_limits
    from engines.load.run import run_load

    limits, questions = parse_limits(within), asked.draw(load.seed)
    endpoint = connect(url, wishes.make_wishes())
    with progress.showing() as report:
        samples = run_load(endpoint, questions, coming, report)
    found = LoadReport(
        endpoint=endpoint.description,
        load=coming,
        max_new_tokens=wishes.max_new_tokens,
        limits=limits,
        samples=samples,
    )
    _show(found, picture, as_json=json)


def _show(found: "LoadReport", picture: Path | None, *, as_json: bool) -> None:
    from engines.load.picture import draw_picture
    from runtime.files import write_bytes

    if not found.answered():
        failed = next(one for one in found.samples if one.failure is not None)
        raise KimiVLError(f"no request was answered; the first: {failed.failure}: {failed.message}")
    if picture is not None:
        write_bytes(picture, draw_picture(found).encode())
        output.note(f"picture: {picture}")
    if as_json:
        output.json_value(found.fields())
    else:
        _show_tables(found)
    for kind, count in found.failures.items():
        message = next(one.message for one in found.samples if one.failure == kind)
        output.note(f"warning: {count} requests failed with {kind}; the first: {message}")


def _show_tables(found: "LoadReport") -> None:
    from engines.load.report import GROUPS, MEASURES

    columns = ("seconds", "requests", "mean", "p50", "p90", "p99")
    rows = []
    for measure in MEASURES:
        for group in GROUPS:
            spread = found.spread(measure, group)
            if spread is not None:
                name = measure.removesuffix("_s").replace("_", " ")
                count = len(found.values(measure, group))
                figures = (spread.mean, *spread.percentiles.values())
                rows.append((f"{name}, {group}", str(count), *(f"{one:.4f}" for one in figures)))
    output.table(columns, rows)
    output.heading("in all")
    tokens, seconds = found.tokens(), found.duration_s
    answered = len(found.answered())
    output.facts(
        {
            "answered": f"{answered} of {len(found.samples)}",
            "seconds": seconds,
            "requests a second": answered / seconds,
            "good requests a second": found.num_good / seconds,
            "new tokens a second": tokens["new"] / seconds,
            "prompt tokens": tokens["prompt"],
            "of these cached": tokens["cached"],
        },
        as_json=False,
    )
