"""Serve an artifact from the wheel: `python -m kimivl.server ARTIFACT --port 8000`.

Flags are the fields of `ServerOptions`; `tool.py serve` has the same.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from ..engine.cpu.weights_place import WeightsPlace
from ..errors import KimiVLError
from .flags import FLAGS
from .options import ServerOptions
from .serving import log_to_stderr, name_of, serve

_TERMINATED, _INTERRUPTED = 0, 130


def main(words: Sequence[str] | None = None) -> int:
    """Serve, and return the exit status."""
    arguments = vars(_make_parser().parse_args(words))
    artifact, target = arguments.pop("artifact"), arguments.pop("target")
    opening = {name: arguments.pop(name) for name in ("release", "num_threads", "weights")}
    for name, flag in FLAGS.items():
        if flag.is_repeated:
            arguments[name] = tuple(arguments[name] or ())
    arguments["model_names"] = arguments["model_names"] or (name_of(artifact),)
    log_to_stderr()
    try:
        options = ServerOptions(**arguments)
        ended_by = serve(
            lambda: _open(artifact, target=target, **opening),
            options,
            announce=lambda url: sys.stderr.write(f"serving {options.model_names[0]} at {url}\n"),
        )
    except KimiVLError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:  # while the artifact is opened
        return _INTERRUPTED
    return _INTERRUPTED if ended_by is signal.SIGINT else _TERMINATED


def _open(artifact: Path, **options: Any) -> Any:  # noqa: ANN401  loaded late
    from ..session import Session

    return Session.open(artifact, **options)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kimivl.server",
        description="Serve an artifact over HTTP.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("artifact", type=Path, help="A folder made by compile.")
    _add_opening(parser)
    defaults = {field.name: field.default for field in fields(ServerOptions)}
    for name, flag in FLAGS.items():
        words: dict[str, Any] = {"dest": name, "help": flag.help}
        if flag.is_switch:
            words["action"] = "store_true"
        elif flag.is_repeated:
            words |= {"action": "append", "metavar": flag.metavar}
        else:
            words |= {"type": flag.type, "metavar": flag.metavar, "default": defaults[name]}
        parser.add_argument(flag.name, **words)
    return parser


def _add_opening(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", default="cpu", help="Which of the artifact's targets.")
    parser.add_argument(
        "--threads", type=int, dest="num_threads", metavar="N", help="Cores to use."
    )
    parser.add_argument(
        "--cpu-weights",
        choices=get_args(WeightsPlace),
        default="auto",
        dest="weights",
        help="Copied into large pages, read where files are mapped, or copied if there is room.",
    )
    parser.add_argument(
        "--release",
        metavar="NAME",
        help="Whose recommended sampling is the default; told from the artifact if left out.",
    )


if __name__ == "__main__":
    sys.exit(main())
