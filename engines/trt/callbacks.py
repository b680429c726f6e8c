"""What TensorRT calls during a build: a monitor that reports and cancels, a writer of the plan.

TensorRT prints an exception that leaves a callback and goes on as if nothing had happened; a stream
that took no byte counts as written. So both keep the first exception for whoever started the build.
"""

import hashlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, BinaryIO

from runtime.progress import Progress

if TYPE_CHECKING:
    import tensorrt_rtx as rtx

THOUSANDTHS = 1000


@dataclass(kw_only=True)
class BuildState:
    """What the callbacks of one build have seen."""

    error: BaseException | None = None
    """The first exception in a callback; the build is void."""
    size_bytes: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def raise_error(self) -> None:
        """Raise what a callback could not."""
        if self.error is not None:
            raise self.error


@dataclass(kw_only=True)
class _Phase:
    parent: str | None
    num_steps: int
    steps: int = 0


class PhaseTree:
    """How far nested phases are, as one share.

    Steps of a phase count alike; phases inside a phase share its present step.
    """

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        """Open a phase."""
        self._phases[name] = _Phase(parent=parent, num_steps=num_steps)

    def finish(self, name: str) -> None:
        """Close a phase; its parent's step counts when it is reported."""
        self._phases.pop(name, None)

    def complete(self, name: str, step: int) -> None:
        """Note the end of a step, counted from 0."""
        if name in self._phases:
            self._phases[name].steps = step + 1

    @property
    def share(self) -> float:
        """What is done of the outermost phases, 0 to 1."""
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        return max(map(self._share, roots), default=0.0)

    def _share(self, name: str) -> float:
        inside = [one for one, phase in self._phases.items() if phase.parent == name]
        step = max(map(self._share, inside), default=0.0)
        return min(1.0, (self._phases[name].steps + step) / max(1, self._phases[name].num_steps))


@contextmanager
def noting_interrupts(state: BuildState) -> Iterator[None]:
    """Keep what signals raise until TensorRT has returned: in its callbacks it would be lost.

    Ctrl-C, and SIGTERM where something handles it.
    """
    is_main = threading.current_thread() is threading.main_thread()
    asked = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    handlers = {one: handler for one in asked if callable(handler := signal.getsignal(one))}

    def note(number: int, frame: FrameType | None) -> None:
        try:
            handlers[signal.Signals(number)](number, frame)
        except BaseException as error:  # noqa: BLE001  # raised again by `raise_error`
            state.error = state.error or error

    for one in handlers:
        signal.signal(one, note)
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)


def make_writer(trt: ModuleType, file: BinaryIO, state: BuildState) -> "rtx.IStreamWriter":
    """Make a stream that writes, counts and hashes a plan."""

    class Writer(trt.IStreamWriter):  # type: ignore[name-defined,misc]  # a class found at run time
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            try:
                file.write(data)
            except BaseException as error:  # noqa: BLE001  # raised again by `raise_error`
                state.error = state.error or error
                return 0
            state.digest.update(data)
            state.size_bytes += len(data)
            return len(data)

    return Writer()


def make_monitor(
    trt: ModuleType, progress: Progress, stage: str, state: BuildState
) -> "rtx.IProgressMonitor":
    """Make a monitor that reports thousandths of a build and cancels it after an error."""
    phases, shown = PhaseTree(), [0]

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]  # as above
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.complete(phase_name, step)
            done = int(THOUSANDTHS * phases.share)
            if done > shown[0]:
                shown[0] = done
                try:
                    progress(stage, done, THOUSANDTHS)
                except BaseException as error:  # noqa: BLE001  # raised again by `raise_error`
                    state.error = state.error or error
            return state.error is None

    return Monitor()
