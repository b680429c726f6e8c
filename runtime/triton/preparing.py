"""From what was sent to a submitted request: read, decoded and encoded in threads.

Requests with images have threads of their own, so that text does not wait for their decoding.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from types import ModuleType

from ..errors import KimiVLError
from ..prompt.messages import Message
from ..scheduling.errors import DeadlineError
from ..scheduling.handle import End
from ..scheduling.options import Deadlines
from ..scheduling.scheduler import Scheduler
from .errors import described
from .exchanges import Exchange, Exchanges
from .questions import Questions, Values, num_images

_NUM_WORKERS = 4
"""Threads of each kind; of images one at a time is decoded anyway."""


class _GoneError(Exception):
    """Whoever sent the request has cancelled it."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One request as it came."""

    exchange: Exchange
    values: Values
    timeout_s: float | None
    """From its arrival to its last token; None is without end."""
    arrived: float = field(default_factory=monotonic)

    def look(self) -> None:
        """Do nothing while there is somebody who waits for it.

        Raises:
            DeadlineError: it has taken longer than it was given.
            _GoneError: it was cancelled.
        """
        if self.exchange.is_cancelled:
            raise _GoneError
        if self.timeout_s is not None and monotonic() - self.arrived >= self.timeout_s:
            raise DeadlineError.unanswered(self.timeout_s)


class Preparation:
    """Prepares requests and submits them; ends those with an error that cannot be."""

    def __init__(
        self,
        backend: ModuleType,
        questions: Questions,
        scheduler: Scheduler,
        exchanges: Exchanges,
    ) -> None:
        """Start the threads.

        Args:
            backend: the module `triton_python_backend_utils`.
            questions: understands what was sent.
            scheduler: takes the requests.
            exchanges: told all events of the requests.
        """
        self._backend, self._questions = backend, questions
        self._scheduler, self._exchanges = scheduler, exchanges
        self._texts = ThreadPoolExecutor(_NUM_WORKERS, thread_name_prefix="kimivl-texts")
        self._images = ThreadPoolExecutor(_NUM_WORKERS, thread_name_prefix="kimivl-images")

    def begin(self, sent: Sent) -> None:
        """Take a request; what comes of it is told to its exchange."""
        self._texts.submit(self._read, sent)

    def close(self) -> None:
        """Prepare what was begun and end the threads."""
        self._texts.shutdown()  # first: it hands on to the other
        self._images.shutdown()

    def _read(self, sent: Sent) -> None:
        with self._failures_told(sent):
            sent.look()
            messages = self._questions.messages(sent.values)
            if num_images(messages):
                self._images.submit(self._submit, sent, messages)
            else:
                self._submit(sent, messages)

    def _submit(self, sent: Sent, messages: Sequence[Message]) -> None:
        with self._failures_told(sent):
            sent.look()
            request = self._questions.request(sent.values, messages, sent.look)
            handle = self._scheduler.submit(
                request,
                deadlines=Deadlines(total_s=sent.timeout_s),
                listener=partial(self._exchanges.tell, sent.exchange),
                arrived=sent.arrived,
            )
            sent.exchange.submitted(handle)

    @contextmanager
    def _failures_told(self, sent: Sent) -> Iterator[None]:
        try:
            yield
        except _GoneError:
            end = End(reason="cancelled", result=None, error=None)
            self._exchanges.tell(sent.exchange, end)
        except Exception as error:  # noqa: BLE001  told to whoever asked
            if not isinstance(error, KimiVLError):
                self._backend.Logger.log_error(described(error))
            self._exchanges.tell(sent.exchange, error)
