"""The conversational model: one engine, one scheduler, answers that stream.

Source: https://github.com/triton-inference-server/python_backend (README: decoupled mode, request
cancellation, custom metrics).
"""

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

from ..artifact.manifest import FILE_NAME
from ..errors import ArtifactError
from ..scheduling.errors import QueueFullError
from ..session import Session
from . import tensors
from .exchanges import Exchange, Exchanges
from .metrics import Measured, Metrics, with_unsubmitted
from .parent import ParentWatch
from .preparing import Preparation, Sent
from .questions import Questions, read_tensors
from .settings import Settings

_MICROSECOND = 1e-6
_MOST_FAILURES = 3
"""Steps that failed one after the other, behind which the model is not ready."""


class ConversationModel:
    """What the server's stub makes one of, for a model's one instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Check the artifact, load its engine, start the scheduler.

        Args:
            args: of the stub: `model_config` JSON, `model_repository` and `model_version`, which
                are the folder that `model.py` is in.

        Raises:
            ArtifactError: the artifact is not what the repository was made for.
            InputError: a parameter is wrong.
            UnsupportedError: more than one instance.
        """
        self._backend: ModuleType = importlib.import_module("triton_python_backend_utils")
        settings = Settings.from_config(json.loads(args["model_config"]))
        folder = Path(args["model_repository"], args["model_version"], settings.artifact)
        _check_manifest(folder, settings.manifest_sha256)
        session = Session.open(
            folder,
            target=settings.target,
            release=settings.release,
            num_threads=settings.num_threads,
        )
        num_slots = session.engine.limits.max_slots
        self._max_open = settings.scheduler.max_queued + num_slots
        self._measured, self._metrics = Measured(), Metrics(self._backend, settings.name)
        self._ending = ExitStack()
        self._parent = ParentWatch()
        self._ending.callback(self._parent.close)
        self._scheduler = self._ending.enter_context(
            session.scheduling(settings.scheduler, observe=self._measured.observe)
        )
        self._exchanges = Exchanges(self._backend, self._tick)
        questions = Questions(session, settings.max_images)
        self._preparation = Preparation(self._backend, questions, self._scheduler, self._exchanges)
        self._backend.Logger.log_info(
            f"{settings.name}: {folder}, target {settings.target}, {num_slots} slots"
        )

    def execute(self, requests: Sequence[Any]) -> None:
        """Take requests; their responses are sent from elsewhere, when there are any."""
        for request in requests:
            values = read_tensors(self._backend, request)
            exchange = Exchange(
                request.get_response_sender(),
                is_streaming=bool(values.get(tensors.STREAM.name, True)),
            )
            is_full = self._exchanges.num_open >= self._max_open
            self._exchanges.open(exchange)
            if is_full:
                self._exchanges.tell(exchange, _full(self._max_open))
            else:
                timeout_s = request.timeout() * _MICROSECOND or None
                self._preparation.begin(Sent(exchange=exchange, values=values, timeout_s=timeout_s))

    def is_ready(self) -> bool:
        """Tell whether the engine works; newer servers ask, 2.51 does not."""
        return self._scheduler.stats().failures_in_a_row < _MOST_FAILURES

    def finalize(self) -> None:
        """End what still runs with an error, tell it, and let go of everything."""
        self._preparation.close()
        self._ending.close()
        self._exchanges.close()

    def _tick(self) -> None:
        self._parent.check()
        stats = with_unsubmitted(self._scheduler.stats(), self._exchanges.unsubmitted)
        self._metrics.update(stats, self._measured)


def _check_manifest(folder: Path, expected: str) -> None:
    path = folder / FILE_NAME
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read: {error.strerror}; is the artifact mounted there?"
        ) from error
    if found != expected:
        raise ArtifactError(
            f"{path}: has SHA-256 {found}, the repository was made for {expected}; run "
            "`tool.py triton` again into another folder"
        )


def _full(count: int) -> QueueFullError:
    return QueueFullError(
        f"{count} requests are running or waiting, which is the most; try again later",
        retry_after_s=1.0,
    )
