"""`eval`: how many questions of a set an artifact answers exactly."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options, output, progress

if TYPE_CHECKING:
    from calibration.evaluate import Evaluation

SetOption = Annotated[
    str,
    typer.Option(
        "--set",
        metavar="NAME|FILE",
        help="`nano`, `nano-calibration`, or a JSONL file of messages with answers.",
    ),
]
ResultsOption = Annotated[
    Path | None,
    typer.Option("--results", metavar="FILE", help="Write every question's result here, as JSONL."),
]
SheetOption = Annotated[
    Path | None,
    typer.Option("--contact-sheet", metavar="FILE", help="Write a PNG of the failures here."),
]


def eval_(
    artifact: options.ArtifactArgument,
    *,
    set_: SetOption = "nano",
    results: ResultsOption = None,
    contact_sheet: SheetOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    target: options.TargetOption = "cpu",
    threads: options.ThreadsOption = None,
    cpu_weights: options.CpuWeightsOption = "auto",
    json: options.JsonOption = False,
) -> None:
    """Ask every question of a set and count the answers that match to the letter.

    Answers are greedy; as many questions run together as the artifact has slots.
    """
    from calibration.contact_sheet import write_contact_sheet
    from calibration.data.examples import load_examples
    from calibration.evaluate import evaluate
    from runtime import Session

    examples = load_examples(set_)
    with progress.showing() as report:
        session = Session.open(
            artifact, target=target, num_threads=threads, weights=cpu_weights, progress=report
        )
        found = evaluate(session, examples, max_new_tokens=max_new_tokens, progress=report)
    if results is not None:
        _write_results(results, found)
    if contact_sheet is not None:
        write_contact_sheet(contact_sheet, found.failures)
    _show(found, as_json=json)


def _show(found: "Evaluation", *, as_json: bool) -> None:
    kinds = found.kinds
    if as_json:
        counts = {
            name: {"exact_match": kind.exact_match, "examples": len(kind.outcomes)}
            for name, kind in kinds.items()
        }
        total = {"exact_match": found.exact_match, "examples": len(found.outcomes)}
        output.json_value({**total, "kinds": counts})
        return
    rows = [(name, *_figures(kind)) for name, kind in kinds.items()]
    output.table(("kind", "exact match", "right", "examples"), [*rows, ("all", *_figures(found))])


def _figures(found: "Evaluation") -> tuple[str, str, str]:
    total = len(found.outcomes)
    return f"{100 * found.exact_match:.1f} %", str(total - len(found.failures)), str(total)


def _write_results(path: Path, found: "Evaluation") -> None:
    from json import dumps

    from runtime.files import write_bytes

    lines = [
        dumps(
            {
                "kind": outcome.example.kind,
                "expected": outcome.example.answer,
                "answer": outcome.answer,
                "thinking": outcome.thinking,
                "right": outcome.is_right,
            },
            ensure_ascii=False,
        )
        for outcome in found.outcomes
    ]
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
