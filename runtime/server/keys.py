"""API keys: one a line in a file, kept as hashes."""

import hashlib
import hmac
import logging
from pathlib import Path

from ..errors import InputError, describe_problems

_LOGGER = logging.getLogger("kimivl.server")


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
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError as error:
            raise InputError(
                f"{path}: no such file; --api-keys names one with a key a line"
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not readable as a file of API keys: {error}") from error
        words = ((number, line.strip()) for number, line in enumerate(lines, start=1))
        keys = {number: word for number, word in words if word and not word.startswith("#")}
        if not keys:
            raise InputError(f"{path}: holds no API key; write one a line")
        problems = [
            f"line {number}: a key is letters, digits and signs of ASCII, without blanks; remarks "
            "have lines of their own"
            for number, key in keys.items()
            if not (key.isascii() and key.isprintable() and " " not in key)
        ]
        if problems:
            raise InputError(describe_problems(str(path), problems))
        if path.stat().st_mode & 0o077:
            _LOGGER.warning("warning: other users may read %s; chmod 600 would keep it", path)
        return cls(tuple(map(_digest, keys.values())))

    def allow(self, authorization: str) -> bool:
        """Tell whether the value of an Authorization header is `Bearer` and one of the keys."""
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip())
        # All are compared, so that the time tells nothing about which.
        found = [hmac.compare_digest(digest, one) for one in self._digests]
        return scheme.lower() == "bearer" and any(found)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="replace")).digest()
