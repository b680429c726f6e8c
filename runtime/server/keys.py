"""API keys: one a line in a file, kept as hashes."""

import hashlib
import hmac
from pathlib import Path

from ..errors import InputError


class ApiKeys:
    """The keys that a server takes."""

    def __init__(self, digests: tuple[bytes, ...]) -> None:
        """Keep SHA-256 digests of keys; `load` makes them."""
        self._digests = digests

    @classmethod
    def load(cls, path: Path) -> "ApiKeys":
        """Read a file with one key a line; empty lines and those that begin with # are none.

        Raises:
            InputError: it is not readable, or holds no key.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not readable as a file of API keys: {error}") from error
        words = map(str.strip, lines)
        keys = [word for word in words if word and not word.startswith("#")]
        if not keys:
            raise InputError(f"{path}: holds no API key; write one a line")
        if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
            raise InputError(f"{path}: a key has characters that no HTTP header can carry")
        return cls(tuple(map(_digest, keys)))

    def allow(self, authorization: str) -> bool:
        """Tell whether the value of an Authorization header is `Bearer` and one of the keys."""
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip())
        # All are compared, so that the time tells nothing about which.
        found = [hmac.compare_digest(digest, one) for one in self._digests]
        return scheme.lower() == "bearer" and any(found)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="replace")).digest()
