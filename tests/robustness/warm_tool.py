"""The tool in a warm process that forks a child for each command line, perhaps to its death.

    python -m tests.robustness.warm_tool CHECKPOINT ARTIFACT
    stdin   one `Call` per line, as JSON
    stdout  one `Outcome` per line, as JSON; the first one is of the compile that warms it up

Modules are loaded and the models traced once, so that a call costs what the stages themselves cost.
The process keeps to one core: then no library starts threads for work, and a fork is whole.
"""

import gc
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

FLAGS = ("--max-kv-cache-capacity", "512", "--max-batch-size", "2", "--prefill-chunk", "64")
NOBODY = 65534
BUG = 70
"""Exit status of a child whose command let a built-in error through."""
_PATIENCE_S = 60


@dataclass(frozen=True, kw_only=True)
class Call:
    """A command line, and what happens to the process that runs it."""

    words: tuple[str, ...]
    dies_at: int | None = None
    """SIGKILL comes at this event, counted from 0."""
    is_nobody: bool = False
    """Whether it runs as an unprivileged user; only root may ask for this."""
    max_file_bytes: int | None = None
    """As `ulimit -f` sets it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a call left."""

    status: int
    """Exit status; minus the signal that ended the process."""
    stdout: str
    stderr: str
    events: tuple[str, ...]


def serve(lines: Iterable[str], replies: TextIO) -> None:
    """Answer calls until there are no more."""
    for line in lines:
        call = Call(**json.loads(line))
        replies.write(json.dumps(asdict(run_in_child(call))) + "\n")
        replies.flush()


def run_in_child(call: Call) -> Outcome:
    """Fork, run, and collect what the child left."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with tempfile.TemporaryFile() as events:
            child = os.fork()
            if child == 0:
                _run_and_exit(call, out.fileno(), err.fileno(), events.fileno())
            _, ended = os.waitpid(child, 0)
            seen = _content(events.fileno()).splitlines()
        return Outcome(
            status=os.waitstatus_to_exitcode(ended),
            stdout=_content(out.fileno()),
            stderr=_content(err.fileno()),
            events=tuple(seen),
        )


def _content(descriptor: int) -> str:
    return os.pread(descriptor, 1 << 20, 0).decode()


def _run_and_exit(call: Call, out: int, err: int, events: int) -> None:
    """Become the process that the call describes."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    status = BUG
    try:
        signal.alarm(_PATIENCE_S)
        _watch_events(events, call.dies_at)
        if call.max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (call.max_file_bytes, call.max_file_bytes))
        if call.is_nobody:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        status = _run(call.words)
    except BaseException:  # noqa: BLE001  nothing may get back into the parent's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _skip(descriptor: object) -> None:
    """Do not wait for the disk: a kill loses nothing that was written, unlike a power cut."""


def _run(words: Iterable[str]) -> int:
    from commands.outcome import status_of
    from tool import app

    return status_of(app, list(words))


def _watch_events(descriptor: int, dies_at: int | None) -> None:
    """Note every event, and die at one of them."""
    from runtime import files

    count = 0

    def note(event: str) -> None:
        nonlocal count
        os.write(descriptor, f"{event}\n".encode())
        if count == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    files.on_event = note


def _remember_traces() -> None:
    """Let the export trace each kind of graph once in the life of this process."""
    from export import stage

    traced: dict[Any, Any] = {}
    hooks = vars(stage)
    trace: Callable[..., Any] = hooks["trace"]

    def remembered(module: Any, spec: Any) -> Any:  # noqa: ANN401  types of heavy packages
        shapes = [(name, tuple(value.shape)) for name, value in module.named_parameters()]
        key = (spec.name, module.__class__.__name__, str(shapes), str(spec.examples[0].dtype))
        if key in traced:
            return traced[key]  # a child may change it: it has its own
        model = trace(module, spec)
        traced[key] = model.clone()
        return model

    hooks["trace"] = remembered


def main() -> None:
    """Warm up with a compile and a run in this very process, then serve."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)
    _remember_traces()
    checkpoint, artifact = sys.argv[1:]
    status = _run(["compile", checkpoint, artifact, *FLAGS])
    picture = str(Path(__file__).parents[2] / "examples" / "coffee.jpg")
    status = status or _run(["run", artifact, "hi", "--image", picture, "--max-new-tokens", "1"])
    vars(os)["fsync"] = _skip
    gc.freeze()
    first = Outcome(status=status, stdout="", stderr="", events=())
    replies.write(json.dumps(asdict(first)) + "\n")
    replies.flush()
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
