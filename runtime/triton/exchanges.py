"""The way back of every request: one thread that sends, and asks who has gone away.

Sending waits for the server and takes its lock, so the scheduler's thread only queues events here.
"""

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from queue import Empty, SimpleQueue
from time import monotonic
from types import ModuleType
from typing import Any

import numpy as np

from ..generation.channels import Piece
from ..scheduling.handle import End, Event, Handle
from . import tensors
from .errors import cancelled, described, triton_error

LOOK_S = 0.05
"""Between two looks at whether clients have gone away."""


class Exchange:
    """One request of the server until its last response."""

    def __init__(self, sender: Any, *, is_streaming: bool) -> None:  # noqa: ANN401  the server's
        """Take what responses are sent with; without streaming there is one at the end."""
        self.sender = sender
        self.is_streaming = is_streaming
        self.pieces: list[Piece] = []
        self._handle: Handle | None = None
        self._is_cancelled = False
        self._lock = threading.Lock()

    def submitted(self, handle: Handle) -> None:
        """Note the submitted request; it is cancelled at once if its sender has gone away."""
        with self._lock:
            self._handle = handle
            is_cancelled = self._is_cancelled
        if is_cancelled:
            handle.cancel()

    def cancel(self) -> None:
        """End the request at the next token, or as soon as it is submitted."""
        with self._lock:
            self._is_cancelled = True
            handle = self._handle
        if handle is not None:
            handle.cancel()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._is_cancelled


class Exchanges:
    """Sends what happens to requests, in order, from a thread of its own."""

    def __init__(self, backend: ModuleType, tick: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            backend: the module `triton_python_backend_utils`.
            tick: called about every `LOOK_S`, in the thread.
        """
        self._backend, self._tick = backend, tick
        self._waiting: SimpleQueue[tuple[Exchange, Event | Exception] | None] = SimpleQueue()
        self._open: set[Exchange] = set()
        self.unsubmitted: Counter[str] = Counter()
        """Errors that requests ended with before they were submitted, by class; of the thread."""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="kimivl-triton", daemon=True)
        self._thread.start()

    @property
    def num_open(self) -> int:
        """Requests without their last response."""
        with self._lock:
            return len(self._open)

    def open(self, exchange: Exchange) -> None:
        """Begin to watch a request."""
        with self._lock:
            self._open.add(exchange)

    def tell(self, exchange: Exchange, event: Event | Exception) -> None:
        """Queue an event, or the error that a request ends with before it was submitted."""
        self._waiting.put((exchange, event))

    def close(self) -> None:
        """Send what is queued and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        last_look = monotonic()
        while True:
            try:
                told = self._waiting.get(timeout=LOOK_S)
            except Empty:
                pass
            else:
                if told is None:
                    return
                self._send(*told)
            if monotonic() - last_look >= LOOK_S:
                self._look()
                last_look = monotonic()

    def _look(self) -> None:
        """Cancel the requests whose senders have gone away."""
        with self._lock:
            opened = list(self._open)
        try:
            for one in opened:
                if not one.is_cancelled and one.sender.is_cancelled():
                    one.cancel()
            self._tick()
        except Exception as error:  # noqa: BLE001  the server's; answers must still be sent
            self._backend.Logger.log_error(described(error))

    def _send(self, exchange: Exchange, event: Event | Exception) -> None:
        if isinstance(event, Exception):
            self.unsubmitted[type(event).__name__] += 1
        try:
            if isinstance(event, Piece):
                self._send_piece(exchange, event)
            else:
                self._send_last(exchange, event)
        except Exception as error:  # noqa: BLE001  the server's; one request must not end the others
            self._log_unsent(error)
            exchange.cancel()
            if not isinstance(event, Piece):
                self._send_plain_end(exchange)
        if not isinstance(event, Piece):
            with self._lock:
                self._open.discard(exchange)

    def _send_piece(self, exchange: Exchange, piece: Piece) -> None:
        if not exchange.is_streaming:
            exchange.pieces.append(piece)
        elif not exchange.is_cancelled:
            exchange.sender.send(self._response([piece], None))

    def _send_last(self, exchange: Exchange, event: End | Exception) -> None:
        backend = self._backend
        error = event if isinstance(event, Exception) else event.error
        if error is not None:
            response = backend.InferenceResponse(error=triton_error(backend, error))
        elif isinstance(event, End) and event.reason != "cancelled":
            response = self._response(exchange.pieces, event)
        else:
            response = backend.InferenceResponse(error=cancelled(backend))
        exchange.sender.send(response, flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _send_plain_end(self, exchange: Exchange) -> None:
        """Send an error without details, or the mark alone: the server waits for it for ever."""
        codes, final = self._backend.TritonError, self._backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            plain = codes("the last response could not be sent", codes.INTERNAL)
            exchange.sender.send(self._backend.InferenceResponse(error=plain), flags=final)
        except Exception as error:  # noqa: BLE001  the server's
            self._log_unsent(error)
            with contextlib.suppress(Exception):
                exchange.sender.send(flags=final)

    def _log_unsent(self, error: Exception) -> None:
        self._backend.Logger.log_error(f"a response could not be sent: {described(error)}")

    def _response(self, pieces: list[Piece], end: End | None) -> Any:  # noqa: ANN401  the server's
        result = end.result if end else None
        text = {
            channel: "".join(piece.text for piece in pieces if piece.channel == channel)
            for channel in ("answer", "thinking")
        }
        ids = [one for piece in pieces for one in piece.token_ids]
        logprobs = [one for piece in pieces for one in piece.logprobs]
        values = {
            tensors.ANSWER: _strings(text["answer"]),
            tensors.THINKING: _strings(text["thinking"]),
            tensors.TOKEN_IDS: np.asarray(ids, dtype=np.int64),
            tensors.LOGPROBS: np.asarray(logprobs, dtype=np.float32),
            tensors.FINISH_REASON: _strings(end.reason if end else ""),
            tensors.USAGE: _strings(json.dumps(asdict(result.usage)) if result else ""),
            tensors.TIMINGS: _strings(json.dumps(asdict(result.timings)) if result else ""),
        }
        made = [self._backend.Tensor(one.name, value) for one, value in values.items()]
        return self._backend.InferenceResponse(output_tensors=made)


def _strings(text: str) -> Any:  # noqa: ANN401  numpy's objects
    return np.array([text.encode()], dtype=np.object_)
