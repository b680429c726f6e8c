"""How our errors are told in the server's words."""

from types import ModuleType
from typing import Any

from ..errors import CapacityError, InputError, KimiVLError, UnsupportedError
from ..scheduling.errors import ClosedError, DeadlineError, QueueFullError

_CODES: tuple[tuple[type[KimiVLError], str], ...] = (
    (InputError, "INVALID_ARG"),
    (CapacityError, "INVALID_ARG"),
    (UnsupportedError, "UNSUPPORTED"),
    (QueueFullError, "UNAVAILABLE"),
    (ClosedError, "UNAVAILABLE"),
    (DeadlineError, "UNAVAILABLE"),
)


def triton_error(backend: ModuleType, error: Exception) -> Any:  # noqa: ANN401  the server's class
    """Make a `TritonError`: the code by the class of the error, the message for users.

    Args:
        backend: the module `triton_python_backend_utils`.
        error: one that is not ours is a mistake of ours, told with its class.
    """
    codes = backend.TritonError
    if not isinstance(error, KimiVLError):
        return codes(described(error), codes.INTERNAL)
    names = [name for kind, name in _CODES if isinstance(error, kind)]
    return codes(_encodable(str(error)), getattr(codes, names[0] if names else "INTERNAL"))


def described(error: Exception) -> str:
    """Name the class of an error and its message, for the log."""
    return _encodable(f"{type(error).__name__}: {error}")


def cancelled(backend: ModuleType) -> Any:  # noqa: ANN401  the server's class
    """Make the error that a cancelled request ends with."""
    return backend.TritonError("the request was cancelled", backend.TritonError.CANCELLED)


def _encodable(text: str) -> str:
    """Escape lone surrogates, which JSON may bring: the server's strings have to be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
