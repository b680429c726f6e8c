"""Serve an artifact from the wheel: `python -m kimivl.server ARTIFACT --port 8000`.

Flags are the fields of `ServerOptions`; `tool.py serve` has the same.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import KimiVLError
from .flags import FLAGS
from .options import ServerOptions
from .serving import log_to_stderr, name_of, serve

_TERMINATED, _INTERRUPTED = 0, 130


def main(words: Sequence[str] | None = None) -> int:
    """Serve, and return the exit status."""
    arguments = vars(_make_parser().parse_args(words))
    artifact, target = arguments.pop("artifact"), arguments.pop("target")
    threads = arguments.pop("threads")
    for name, flag in FLAGS.items():
        if flag.is_repeated:
            arguments[name] = tuple(arguments[name] or ())
    arguments["model_names"] = arguments["model_names"] or (name_of(artifact),)
    log_to_stderr()
    try:
        options = ServerOptions(**arguments)
        ended_by = serve(
            lambda: _open(artifact, target, threads),
            options,
            announce=lambda url: sys.stderr.write(f"serving {options.model_names[0]} at {url}\n"),
        )
    except KimiVLError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:  # while the artifact is opened
        return _INTERRUPTED
    return _INTERRUPTED if ended_by is signal.SIGINT else _TERMINATED


def _open(artifact: Path, target: str, threads: int | None) -> Any:  # noqa: ANN401  loaded late
    from ..session import Session

    return Session.open(artifact, target=target, num_threads=threads)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kimivl.server", description="Serve an artifact over HTTP."
    )
    parser.add_argument("artifact", type=Path, help="a folder made by compile")
    parser.add_argument("--target", default="cpu", help="which of the artifact's targets")
    parser.add_argument("--threads", type=int, help="cores to use")
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


if __name__ == "__main__":
    sys.exit(main())
