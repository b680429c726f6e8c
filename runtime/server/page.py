"""The chat page: one file, allowed to run its own script and to talk to this server alone."""

import base64
import hashlib
import re
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class PageEndpoint:
    """GET /."""

    def __init__(self) -> None:
        """Read the page and hash what it runs."""
        self._text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        self._headers = {
            "Content-Security-Policy": content_policy(self._text),
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }

    async def answer(self, request: Request) -> Response:
        """Send the page."""
        return HTMLResponse(self._text, headers=self._headers)


def content_policy(page: str) -> str:
    """Allow the page's own script and style, by their hashes, its server, and pictures it holds."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "img-src data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
