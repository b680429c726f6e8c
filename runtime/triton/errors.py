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
        return codes(f"{type(error).__name__}: {error}", codes.INTERNAL)
    names = [name for kind, name in _CODES if isinstance(error, kind)]
    return codes(str(error), getattr(codes, names[0] if names else "INTERNAL"))


def cancelled(backend: ModuleType) -> Any:  # noqa: ANN401  the server's class
    """Make the error that a cancelled request ends with."""
    return backend.TritonError("the request was cancelled", backend.TritonError.CANCELLED)
