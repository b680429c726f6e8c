"""Turns bodies into requests: read, fetched, opened, encoded; knows no sockets and no answers.

Each kind of work has its threads. Pictures are opened one by one, each in its turn among those of
all requests, so that texts never wait for pictures, and small pictures not for all of somebody
else's. Who cancels the coroutine `prepare` cancels all of a request that has not begun.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from ..errors import CapacityError
from ..generation.constraint import Grammar
from ..generation.request import Request
from ..prompt.messages import Message, Text, drop_thinking, images_of, parse_messages
from ..prompt.patches import PatchedImage
from ..session import Session
from .api_errors import ApiError
from .chat_request import ChatRequest
from .constraints import Grammars
from .options import ServerOptions
from .remote_images import RemoteImages

_NUM_TEXTS = 4
_NUM_PICTURES = 2
"""One is decoded while another is cut into patches."""
_NUM_COMPILING = 2
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that only waits to be submitted, and how its answer is wanted, without messages."""

    chat: ChatRequest
    request: Request


class Preparation:
    """The way from bodies to requests of one session."""

    def __init__(self, session: Session, options: ServerOptions) -> None:
        """Start no thread yet."""
        self._session, self._options = session, options
        self._max_tokens = session.engine.limits.max_input_tokens
        self._max_text = self._max_tokens * _longest_token(session)
        self._grammars = Grammars(session.tokenizer, session.stop_ids)
        self._images = RemoteImages(
            options.image_hosts, max_bytes=options.max_body_bytes, max_images=options.max_images
        )
        self._texts = ThreadPoolExecutor(_NUM_TEXTS, "kimivl-texts")
        self._pictures = ThreadPoolExecutor(_NUM_PICTURES, "kimivl-pictures")
        self._compiling = ThreadPoolExecutor(_NUM_COMPILING, "kimivl-grammars")

    async def prepare(self, body: bytes) -> Prepared:
        """Turn a body into a request.

        Raises:
            KimiVLError: it is not one that can be answered.
        """
        chat = await self.with_texts(lambda: self._read_body(body))
        fetched = await self._images.fetch_all(chat.messages)
        messages = await self.with_texts(lambda: self._read_messages(fetched))
        grammar = None
        if chat.constraint is not None:
            grammar = await _run(self._compiling, partial(self._grammars.compile, chat.constraint))
        open_image = self._session.encoder.open_image
        opened = [
            await _run(self._pictures, partial(open_image, image)) for image in images_of(messages)
        ]
        request = await self.with_texts(lambda: self._make_request(chat, messages, opened, grammar))
        # Its pictures are in the request, in another form; the text of them can be large.
        return Prepared(chat=replace(chat, messages=[]), request=request)

    async def with_texts(self, work: Callable[[], _Value]) -> _Value:
        """Run something short in a thread that never opens pictures."""
        return await _run(self._texts, work)

    def close(self) -> None:
        """Forget what waits for a thread; what runs is not waited for."""
        for pool in (self._texts, self._pictures, self._compiling):
            pool.shutdown(wait=False, cancel_futures=True)

    def _read_body(self, body: bytes) -> ChatRequest:
        """Read a body, and refuse what is not served or cannot fit before more work is done."""
        chat = ChatRequest.from_body(body)
        known = self._options.model_names
        if chat.model is not None and chat.model not in known:
            raise ApiError(
                404,
                f"the model {chat.model[:100]!r} is not served here; use {' or '.join(known)}",
                code="model_not_found",
                param="model",
            )
        count = len(chat.messages) + sum(map(_num_parts, chat.messages))
        if count > self._max_tokens:
            most = f"no more than {self._max_tokens:,} ever do"
            raise too_long(f"{count:,} messages and parts cannot fit; {most}")
        return chat

    def _read_messages(self, messages: Sequence[Any]) -> tuple[Message, ...]:
        parsed = drop_thinking(parse_messages(messages, allow_paths=False))
        num_images, most = len(images_of(parsed)), self._options.max_images
        if num_images > most:
            raise CapacityError(f"{num_images} images are over the server's limit of {most}")
        parts = (part for message in parsed for part in message.parts)
        size = sum(len(part.text) for part in parts if isinstance(part, Text))
        if size > self._max_text:
            raise too_long(
                f"{size:,} characters of text cannot fit; no more than {self._max_text:,} ever do"
            )
        return parsed

    def _make_request(
        self,
        chat: ChatRequest,
        messages: Sequence[Message],
        images: Sequence[PatchedImage],
        grammar: Grammar | None,
    ) -> Request:
        session = self._session
        prompt = session.encoder.encode(messages, images=images)
        default = session.request(prompt)
        limits = replace(default.limits, **chat.limits)
        return session.request(
            prompt,
            replace(default.sampling, **chat.sampling),
            replace(limits, max_new_tokens=self._max_new(chat, limits.max_new_tokens)),
            grammar=grammar,
        )

    def _max_new(self, chat: ChatRequest, wanted: int | None) -> int | None:
        most = self._options.max_new_tokens
        if most is not None and chat.limits.get("max_new_tokens", 0) > most:
            raise CapacityError(
                f"max_tokens {chat.limits['max_new_tokens']} is over the server's limit of {most}"
            )
        return wanted if most is None else min(wanted or most, most)


async def _run(pool: ThreadPoolExecutor, work: Callable[[], _Value]) -> _Value:
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def _num_parts(message: object) -> int:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        return 0
    videos = (part.get("video") for part in content if isinstance(part, Mapping))
    return len(content) + sum(len(frames) for frames in videos if isinstance(frames, list))


def too_long(message: str) -> ApiError:
    """Say that a conversation does not fit, with the code that makes clients shorten it."""
    return ApiError(400, message, code="context_length_exceeded", param="messages")


def _longest_token(session: Session) -> int:
    """Count the characters that one token can stand for at most."""
    tokenizer = session.tokenizer
    return max(len(tokenizer.decode_bytes([one])) for one in range(tokenizer.vocab_size))
