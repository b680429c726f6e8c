"""Errors as OpenAI's API tells them: a status and `{"error": {...}}`.

    400  a request that cannot be understood or does not fit     invalid_request_error
    401  no key, or a wrong one                                  authentication_error
    404  no such model or path                                   invalid_request_error
    408  the body did not come in time                           invalid_request_error
    413  the body is too large                                   invalid_request_error
    415  the body is no JSON by its content type                 invalid_request_error
    429  too many are waiting; Retry-After says when             rate_limit_error
    503  the server is going away                                server_error
    504  the request took longer than it was given               server_error
    500  the engine, or a mistake of ours                        server_error

Source: https://platform.openai.com/docs/guides/error-codes
"""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import CapacityError, CheckpointError, InputError, KimiVLError, UnsupportedError
from ..generation.constraint import ConstraintError
from ..scheduling.errors import (
    ClosedError,
    DeadlineError,
    EngineFailedError,
    HandlingError,
    QueueFullError,
    SchedulerError,
)

_INVALID, _SERVER = "invalid_request_error", "server_error"

# The first row whose class matches decides.
_BY_CLASS: tuple[tuple[type[KimiVLError], int, str, str], ...] = (
    (QueueFullError, 429, "rate_limit_error", "queue_full"),
    (ClosedError, 503, _SERVER, "shutting_down"),
    (DeadlineError, 504, _SERVER, "deadline_exceeded"),
    (CapacityError, 400, _INVALID, "too_large"),
    (UnsupportedError, 400, _INVALID, "unsupported"),
    (InputError, 400, _INVALID, "invalid_value"),
    (ConstraintError, 400, _INVALID, "grammar_not_followed"),
    # The template cannot say these messages: they, not the server, have to change.
    (CheckpointError, 400, _INVALID, "chat_template"),
)
# Their own texts tell of files and libraries: clients are told these, the log the others.
_INNER: tuple[tuple[type[KimiVLError], str], ...] = (
    (CheckpointError, "the model's chat template cannot say these messages"),
    (EngineFailedError, "the engine failed in a step that this request was part of"),
    (HandlingError, "the server failed at this request's tokens"),
    (SchedulerError, "the server made a mistake; what was running was ended"),
)


class ApiError(KimiVLError):
    """What a client is told, with the status that it is told by."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = _INVALID,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        cause: str | None = None,
    ) -> None:
        """Describe an error.

        Args:
            status: of HTTP.
            message: for people.
            code: for programs.
            kind: `type` in the answer.
            param: the field of the request that is wrong.
            headers: of the answer.
            cause: for the log alone.
        """
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind
        self.param = param
        self.headers = dict(headers or {})
        self.cause = cause

    @classmethod
    def from_error(cls, error: Exception) -> "ApiError":
        """Tell a client about any error; of our own mistakes it learns no details."""
        if isinstance(error, cls):
            return error
        if not isinstance(error, KimiVLError):
            return cls(500, "the server made a mistake", kind=_SERVER, code="internal_error")
        fixed = next((text for kind, text in _INNER if isinstance(error, kind)), None)
        message, cause = (str(error), None) if fixed is None else (fixed, _cause_of(error))
        for kind, status, api_kind, code in _BY_CLASS:
            if isinstance(error, kind):
                headers = _retry(error)
                return cls(status, message, kind=api_kind, code=code, headers=headers, cause=cause)
        return cls(500, message, kind=_SERVER, code=type(error).__name__, cause=cause)

    @property
    def body(self) -> dict[str, Any]:
        """The object that the answer holds."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def _cause_of(error: KimiVLError) -> str:
    """Say what the log may hold: a template's error can repeat the conversation."""
    if isinstance(error, CheckpointError):
        return f"{type(error).__name__} by {type(error.__cause__).__name__}"
    return str(error)


def _retry(error: Exception) -> dict[str, str]:
    if isinstance(error, QueueFullError):
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    return {"Retry-After": "5"} if isinstance(error, ClosedError) else {}
