"""What is noted of a request for the access log and the counts; never what it says."""

import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.types import Scope

from ..generation.request import Usage

_KEY = "kimivl.record"
_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(kw_only=True)
class Record:
    """One request over HTTP."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    """0 until an answer has begun."""
    usage: Usage | None = None
    reason: str | None = None
    """Why an answer ended."""
    error: str | None = None
    """Code of the error."""
    cause: str | None = None
    """What the error says to who runs the server, and not to clients."""
    is_gone: bool = False
    """Whether the client went away first."""


def begin_record(scope: Scope) -> Record:
    """Start noting a request; it keeps the id that it brings, if that is a harmless one."""
    headers = dict(scope.get("headers", []))
    brought = headers.get(b"x-request-id", b"").decode("latin-1")
    request_id = brought if _GOOD_ID.fullmatch(brought) else uuid.uuid4().hex
    record = Record(request_id=request_id)
    scope[_KEY] = record
    return record


def record_of(scope: Scope) -> Record:
    """Find the notes on a request."""
    record = scope.get(_KEY)
    assert isinstance(record, Record)
    return record
