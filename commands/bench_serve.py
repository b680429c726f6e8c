"""`bench serve`: what many clients get of an endpoint."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import InputError, KimiVLError

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
    coming, wanted = load.make_load(), wishes.make_wishes()
    from engines.load.opening import connect
    from engines.load.report import LoadReport, parse_limits
    from engines.load.run import run_load

    limits = parse_limits(within)
    if picture is not None:
        _check_place(picture)
    questions = asked.draw(load.seed, num_more=coming.num_warmups)
    endpoint = connect(url, wanted)
    with progress.showing() as report:
        samples = run_load(endpoint, questions, coming, report, warn=_warn)
    found = LoadReport(
        endpoint=endpoint.description,
        load=coming,
        max_new_tokens=wishes.max_new_tokens,
        limits=limits,
        samples=samples,
        asked={"data": asked.data, "text_share": asked.text_share, "timeout_s": wanted.timeout_s},
    )
    _show(found, picture, as_json=json)


def _show(found: "LoadReport", picture: Path | None, *, as_json: bool) -> None:
    if not found.answered():
        failed = next(one for one in found.samples if one.failure is not None)
        raise KimiVLError(f"no request was answered; the first: {failed.failure}: {failed.message}")
    if as_json:
        output.json_value(found.fields())
    else:
        _show_tables(found)
    for kind, count in found.failures.items():
        message = next(one.message for one in found.samples if one.failure == kind)
        _warn(f"{count} requests failed with {kind}; the first: {message}")
    if num_late := int(found.late["requests"]):
        _warn(
            f"{num_late} requests were sent late, one of them {found.late['most_s']:.3f} s: this "
            "machine does not reach the rate, or too many are in flight"
        )
    if picture is not None:
        _draw(found, picture)


def _warn(text: str) -> None:
    output.note(f"warning: {text}")


def _check_place(picture: Path) -> None:
    """Refuse a place that cannot be written before anything is measured for it."""
    from runtime.files import disk_errors_named

    if picture.is_dir():
        raise InputError(f"{picture}: is a folder; give the picture's file name")
    with disk_errors_named(picture):
        picture.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=picture.parent):
            pass


def _draw(found: "LoadReport", picture: Path) -> None:
    from engines.load.picture import draw_picture
    from runtime.files import write_bytes

    write_bytes(picture, draw_picture(found).encode())
    output.note(f"picture: {picture}")


def _show_tables(found: "LoadReport") -> None:
    from engines.load.report import GROUPS, MEASURES

    columns = ("seconds", "requests", "mean", "p50", "p90", "p99")
    has_both = len({one.num_images > 0 for one in found.samples}) > 1
    rows = []
    for measure in MEASURES:
        for group in GROUPS if has_both else GROUPS[:1]:
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
    good = {"good requests a second": found.num_good / seconds} if found.limits else {}
    output.facts(
        {
            "answered": f"{answered} of {len(found.samples)}",
            "seconds": seconds,
            "requests a second": answered / seconds,
            **good,
            "new tokens a second": tokens["new"] / seconds,
            "prompt tokens": tokens["prompt"],
            "of these cached": tokens["cached"],
        },
        as_json=False,
    )
