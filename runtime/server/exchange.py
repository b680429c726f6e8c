"""One chat request on its way: body in, events of the scheduler out, as ASGI messages.

A client that goes away frees its slot before the next token; so does one that does not read what
it is sent. Before the first event nothing is sent, so that a request which fails gets the status
that says why; only if that takes long do a stream's headers go ahead.
"""

import json
import time
import uuid
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from .. import __version__
from ..generation.channels import Piece
from ..scheduling.errors import ClosedError
from ..scheduling.handle import End, Event, Handle
from .api_errors import ApiError
from .body import read_json_body
from .client import Client, client_left
from .completion import Heading, WholeAnswer, delta_choice, usage_fields, whole_choice
from .event_buffer import EventBuffer
from .preparing import Prepared
from .record import Record, record_of
from .service import Service
from .token_report import TokenReport

MAX_WAITING_PIECES = 1024
"""That a reader may leave; the sockets on the way hold much more."""
_ALIVE_EVERY_S = 10.0
"""A comment is sent after so long without an event, for proxies that cut silent connections."""
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the stream
]


class ChatEndpoint:
    """Answers POST /v1/chat/completions."""

    def __init__(self, service: Service, *, max_waiting_pieces: int = MAX_WAITING_PIECES) -> None:
        """Serve what a service has."""
        self._service = service
        self._max_waiting = max_waiting_pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            KimiVLError: it gets no answer, and nothing was sent.
        """
        service, record = self._service, record_of(scope)
        with service.inside():
            client = Client(receive, record)
            try:
                exchange = await self._begin(HttpRequest(scope, receive), client)
                client.on_leaving(exchange.cancel)
                try:
                    if exchange.is_stream:
                        await exchange.stream(send)
                    else:
                        await exchange.send_whole(scope, receive, send)
                finally:
                    exchange.cancel()
                    exchange.note(record)
            finally:
                client.let_go()

    async def _begin(self, request: HttpRequest, client: Client) -> "_Exchange":
        """Read a request and queue it, as long as its client is there and it has time."""
        service = self._service
        async with service.preparing(client.record) as clock:
            client.on_leaving(lambda: clock.stop(client_left()))
            body = await read_json_body(request, max_bytes=service.options.max_body_bytes)
            client.watch()
            prepared = await service.prepare(body)
            buffer = EventBuffer(max_pieces=self._max_waiting if prepared.chat.is_stream else None)
            buffer.on_overrun = prepared.request.cancel
            arrived = client.record.started
            handle = await service.submit(prepared, buffer.listen, arrived=arrived)
        return _Exchange(service, prepared, handle, buffer, client)


class _Exchange:
    """The answer to one submitted request."""

    def __init__(
        self,
        service: Service,
        prepared: Prepared,
        handle: Handle,
        buffer: EventBuffer,
        client: Client,
    ) -> None:
        self._chat, self._handle, self._buffer = prepared.chat, handle, buffer
        self._client = client
        self._heading = Heading(
            answer_id=f"chatcmpl-{uuid.uuid4().hex}",
            model=prepared.chat.model or service.options.model_names[0],
            created=int(time.time()),
            fingerprint=f"kimivl-{__version__}",
        )
        self._report = TokenReport(
            service.session.tokenizer, service.session.stop_ids, prepared.chat.top_logprobs
        )
        self._error: ApiError | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer is wanted as it comes."""
        return self._chat.is_stream

    def cancel(self) -> None:
        """Free the slot; does nothing to an answer that has ended."""
        self._handle.cancel()

    def note(self, record: Record) -> None:
        """Tell the access log what became of it."""
        end = self._handle.end
        record.usage = end.result.usage if end and end.result else None
        record.reason = end.reason if end else "cancelled"
        if self._error is not None:
            record.error, record.cause = self._error.code, self._error.cause

    async def send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer when it has ended."""
        whole = WholeAnswer()
        while not isinstance(event := await self._next(), End):
            if event.channel == "thinking":
                whole.thinking += event.text
            else:
                whole.answer += event.text
            whole.tokens += self._tokens(event) or []
        self._error = self._error_of(event)
        if self._client.is_gone:
            raise client_left()
        if self._error is not None:
            raise self._error
        assert event.result is not None
        whole.tokens += self._report.flush()
        choice = whole_choice(
            whole, finish_reason=str(event.reason), has_logprobs=self._chat.has_logprobs
        )
        answer = self._heading.completion([choice])
        await JSONResponse({**answer, "usage": usage_fields(event.result.usage)})(
            scope, receive, send
        )

    async def stream(self, send: Send) -> None:
        """Send every piece when it comes."""
        event = await self._buffer.next(_ALIVE_EVERY_S)
        if self._client.is_gone:
            raise client_left()
        if isinstance(event, End):
            self._error = self._error_of(event)
            if self._error is not None:
                raise self._error
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._send_chunk(send, delta_choice({"role": "assistant", "content": ""}))
        while not isinstance(event, End):
            if self._client.is_gone:
                return  # what is written to a broken connection is complained about
            if event is None:
                await _send_bytes(send, b": waiting\n\n")
            else:
                await self._send_piece(send, event)
            event = await self._buffer.next(_ALIVE_EVERY_S)
        await self._send_end(send, event)
        await _send_bytes(send, b"", is_last=True)

    async def _next(self) -> Event:
        event = None
        while event is None:
            event = await self._buffer.next(_ALIVE_EVERY_S)
        return event

    async def _send_piece(self, send: Send, piece: Piece) -> None:
        name = "reasoning_content" if piece.channel == "thinking" else "content"
        tokens = self._tokens(piece)
        if piece.text or tokens:
            delta = {name: piece.text} if piece.text else {}
            await self._send_chunk(send, delta_choice(delta, tokens=tokens))

    async def _send_end(self, send: Send, end: End) -> None:
        self._error = self._error_of(end)
        if self._error is not None:
            await _send_event(send, self._error.body)
            return
        tokens = self._report.flush() or None
        reason = str(end.reason)
        await self._send_chunk(send, delta_choice({}, tokens=tokens, finish_reason=reason))
        if self._chat.has_usage_chunk and end.result is not None:
            usage = usage_fields(end.result.usage)
            await _send_event(send, {**self._heading.chunk([]), "usage": usage})
        await _send_bytes(send, b"data: [DONE]\n\n")

    async def _send_chunk(self, send: Send, choice: dict[str, Any]) -> None:
        chunk = self._heading.chunk([choice])
        await _send_event(send, {**chunk, "usage": None} if self._chat.has_usage_chunk else chunk)

    def _tokens(self, piece: Piece) -> list[dict[str, Any]] | None:
        return self._report.push(piece.choices) if self._chat.has_logprobs else None

    def _error_of(self, end: End) -> ApiError | None:
        """Tell why there is no whole answer, if there is none."""
        if self._buffer.is_overrun:
            return ApiError(
                408,
                f"the client left {self._buffer.max_pieces} pieces of the answer unread",
                code="slow_reader",
            )
        if end.error is not None:
            return ApiError.from_error(end.error)
        if end.reason == "cancelled" and not self._client.is_gone:
            return ApiError.from_error(ClosedError("the request was cancelled by the server"))
        return None


async def _send_event(send: Send, value: object) -> None:
    # With escapes for all but ASCII: some clients take U+2028 and its like for the end of a line.
    await _send_bytes(send, f"data: {json.dumps(value)}\n\n".encode())


async def _send_bytes(send: Send, data: bytes, *, is_last: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": not is_last})
