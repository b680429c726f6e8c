"""`bench serve`: what many clients get of an endpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.errors import InputError, KimiVLError

from . import options, output, progress

if TYPE_CHECKING:
    from engines.load.report import LoadReport

UrlArgument = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="http://HOST:PORT of a server in OpenAI's dialect, or grpc://HOST:PORT/MODEL of "
        "a Triton server.",
    ),
]
QuestionsOption = Annotated[
    str,
    typer.Option(
        metavar="SET",
        help="What is asked: a JSONL file of conversations, a folder of images, or nano.",
    ),
]
RequestsOption = Annotated[int, typer.Option(min=1, metavar="N", help="Requests to send.")]
ConcurrencyOption = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        "-c",
        min=1,
        metavar="N",
        help="Clients, each asking again when it was answered.",
        show_default="8, without --rate",
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Requests a second on average, at random times, whatever is answered.",
        show_default="none",
    ),
]
WarmupOption = Annotated[
    int, typer.Option(min=0, metavar="N", help="Requests before, that are not counted.")
]
LoadTokensOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Most tokens of an answer.")
]
WithinOption = Annotated[
    str | None,
    typer.Option(
        metavar="ttft=S,token=S,total=S",
        help="What is good enough, in seconds: to the first token, between two, to the end.",
        show_default="everything that is answered",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Which model.", show_default="the first that there is"),
]
ApiKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Its first line is sent as the API key.", show_default="none"
    ),
]
TimeoutOption = Annotated[
    float, typer.Option(min=0.001, metavar="S", help="Seconds after which a request has failed.")
]
PictureOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.svg", help="Draw the distributions.", show_default="no picture"),
]
LoadSeedOption = Annotated[int, typer.Option(help="Decides the order and the times.")]


def bench_serve(
    url: UrlArgument,
    *,
    data: QuestionsOption = "nano",
    requests: RequestsOption = 100,
    concurrency: ConcurrencyOption = None,
    rate: RateOption = None,
    warmup: WarmupOption = 2,
    max_new_tokens: LoadTokensOption = 256,
    within: WithinOption = None,
    model: ModelOption = None,
    api_key_file: ApiKeyFileOption = None,
    timeout: TimeoutOption = 300,
    seed: LoadSeedOption = 0,
    picture: PictureOption = None,
    json: options.JsonOption = False,
) -> None:
    """Time an endpoint as many clients see it.

    So many clients at a time, or requests at random times (a Poisson process). A request counts
    from when it was due. Fails if nothing is answered.
    """
    if concurrency is not None and rate is not None:
        raise typer.BadParameter("contradicts --rate", param_hint="--concurrency")
    from calibration.data.samples import load_conversations
    from engines.load.asked import Question, draw_questions
    from engines.load.endpoint import Wishes, connect
    from engines.load.report import LoadReport, parse_limits
    from engines.load.run import Load, run_load

    limits = parse_limits(within)
    load = Load(
        concurrency=None if rate is not None else concurrency or 8,
        rate=rate,
        num_warmups=warmup,
        seed=seed,
    )
    asked = [Question.of(example.messages) for example in load_conversations(data)]
    wishes = Wishes(
        max_new_tokens=max_new_tokens,
        timeout_s=timeout,
        model=model,
        api_key=_read_key(api_key_file),
    )
    endpoint = connect(url, wishes)
    with progress.showing() as report:
        samples = run_load(endpoint, draw_questions(asked, requests, seed), load, report)
    found = LoadReport(
        endpoint=endpoint.description,
        load=load,
        max_new_tokens=max_new_tokens,
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


def _read_key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the API key cannot be read: {error}") from error
    if not lines or not lines[0].strip():
        raise InputError(f"{path}: holds no API key in its first line")
    return lines[0].strip()
