"""What all requests of a server share: the session, its scheduler, limits, the count of who is in.

Turns bodies into scheduled requests. Knows no sockets and no answers.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, TypeVar

from ..errors import CapacityError
from ..generation.request import Request, Timings
from ..prompt.messages import Image, Message, Text, drop_thinking, parse_messages
from ..scheduling.errors import ClosedError, QueueFullError
from ..scheduling.handle import Handle, Listener
from ..scheduling.options import Deadlines
from ..scheduling.scheduler import Scheduler
from ..session import Session
from .api_errors import ApiError
from .chat_request import ChatRequest
from .constraints import Grammars
from .options import ServerOptions
from .remote_images import RemoteImages

_NUM_PREPARING = 4
"""Threads that read bodies, open images and encode text; images are opened one at a time anyway."""
_NUM_GRAMMARS = 32
_FAILURES_UNTIL_UNREADY = 3
_POLL_S = 0.02
_LEAST_RETRY_S = 1.0
_SHARE_OF_LATEST = 0.2
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that only waits to be submitted, and how its answer is wanted, without messages."""

    chat: ChatRequest
    request: Request


class Service:
    """One served artifact."""

    def __init__(self, session: Session, scheduler: Scheduler, options: ServerOptions) -> None:
        """Get ready; the scheduler is the session's, and outlives the service."""
        self.session, self.options = session, options
        self.scheduler = scheduler
        self._grammars = Grammars(session.tokenizer, session.stop_ids, num_kept=_NUM_GRAMMARS)
        self._images = RemoteImages(
            options.image_hosts, max_bytes=options.max_body_bytes, max_images=options.max_images
        )
        self._threads = ThreadPoolExecutor(_NUM_PREPARING, "kimivl-prepare")
        self._num_slots = session.engine.limits.max_slots
        self._max_inside = self._num_slots + options.max_queued
        self._mean_held_s = 0.0
        self._max_text = session.engine.limits.max_input_tokens * _longest_token(session)
        self._deadlines = Deadlines(
            queue_s=options.queue_timeout_s, total_s=options.request_timeout_s
        )
        self.num_inside = 0
        """Requests from their first byte to the last one of their answer."""
        self.is_draining = False
        self.is_hurried = False
        """Whether draining is to end at once; may be set in a signal handler."""

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken, and the engine answers."""
        failures = self.scheduler.stats().failures_in_a_row
        return not self.is_draining and failures < _FAILURES_UNTIL_UNREADY

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Count a request in, before its body is read.

        Raises:
            QueueFullError: as many as fit are inside.
            ClosedError: the server is shutting down.
        """
        if self.is_draining:
            raise ClosedError("no new requests are taken: the server is shutting down")
        if self.num_inside >= self._max_inside:
            # A slot gets free on average this often.
            retry_after_s = max(_LEAST_RETRY_S, self._mean_held_s / self._num_slots)
            raise QueueFullError(
                f"{self.num_inside} requests are running and waiting, which is the most; "
                f"try again in {math.ceil(retry_after_s)} s",
                retry_after_s=retry_after_s,
            )
        self.num_inside += 1
        try:
            yield
        finally:
            self.num_inside -= 1

    def check_model(self, name: str | None) -> None:
        """Refuse what is not served here.

        Raises:
            ApiError: it is not.
        """
        known = self.options.model_names
        if name is not None and name not in known:
            raise ApiError(
                404,
                f"the model {name[:100]!r} is not served here; use {' or '.join(known)}",
                code="model_not_found",
                param="model",
            )

    async def prepare(self, body: bytes) -> Prepared:
        """Turn a body into a request.

        Raises:
            KimiVLError: it is not one that can be answered.
        """
        chat = await self._in_thread(lambda: ChatRequest.from_body(body))
        self.check_model(chat.model)
        messages = await self._images.fetch_all(chat.messages)
        request = await self._in_thread(lambda: self._make_request(chat, messages))
        # Its pictures are in the request, in another form; the text of them can be large.
        return Prepared(chat=replace(chat, messages=[]), request=request)

    async def submit(self, prepared: Prepared, listener: Listener) -> Handle:
        """Queue a request.

        Raises:
            KimiVLError: it does not fit, or too many are waiting.
        """
        try:
            return await self._in_thread(
                lambda: self.scheduler.submit(
                    prepared.request, deadlines=self._deadlines, listener=listener
                )
            )
        except CapacityError as error:
            raise _too_long(str(error)) from error

    def note_timings(self, timings: Timings) -> None:
        """Learn how long requests hold their slots lately."""
        held_s = timings.time_to_first_token_s + timings.decode_s
        share = _SHARE_OF_LATEST if self._mean_held_s else 1.0
        self._mean_held_s += share * (held_s - self._mean_held_s)

    async def drain(self) -> None:
        """Take nothing new; return when all that is inside has ended, or its time is over."""
        self.is_draining = True
        end = monotonic() + self.options.drain_timeout_s
        while self.num_inside and monotonic() < end and not self.is_hurried:
            await asyncio.sleep(_POLL_S)

    async def _in_thread(self, work: Callable[[], _Value]) -> _Value:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _make_request(self, chat: ChatRequest, messages: Sequence[Any]) -> Request:
        parsed = drop_thinking(parse_messages(messages, allow_paths=False))
        self._check_sizes(parsed)
        grammar = self._grammars.compile(chat.constraint) if chat.constraint else None
        prompt = self.session.encoder.encode(parsed)
        default = self.session.request(prompt)
        limits = replace(default.limits, **chat.limits)
        return self.session.request(
            prompt,
            replace(default.sampling, **chat.sampling),
            replace(limits, max_new_tokens=self._max_new(chat, limits.max_new_tokens)),
            grammar=grammar,
        )

    def _check_sizes(self, messages: Sequence[Message]) -> None:
        parts = [part for message in messages for part in message.parts]
        num_images = sum(isinstance(part, Image) for part in parts)
        if num_images > self.options.max_images:
            raise CapacityError(
                f"{num_images} images are over the server's limit of {self.options.max_images}"
            )
        size = sum(len(part.text) for part in parts if isinstance(part, Text))
        if size > self._max_text:
            raise _too_long(
                f"{size:,} characters of text cannot fit; no more than {self._max_text:,} ever do"
            )

    def _max_new(self, chat: ChatRequest, wanted: int | None) -> int | None:
        most = self.options.max_new_tokens
        if most is not None and chat.limits.get("max_new_tokens", 0) > most:
            raise CapacityError(
                f"max_tokens {chat.limits['max_new_tokens']} is over the server's limit of {most}"
            )
        return wanted if most is None else min(wanted or most, most)


def _too_long(message: str) -> ApiError:
    # The code that clients look for, to shorten the conversation.
    return ApiError(400, message, code="context_length_exceeded", param="messages")


def _longest_token(session: Session) -> int:
    """Count the characters that one token can stand for at most."""
    tokenizer = session.tokenizer
    return max(len(tokenizer.decode_bytes([one])) for one in range(tokenizer.vocab_size))
