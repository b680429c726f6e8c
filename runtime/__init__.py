"""Run compiled Kimi-VL artifacts: messages and images in, streamed text out.

    from runtime import Session              # installed: from kimivl import Session
    session = Session.open("artifact")
    prompt = session.encode([{"role": "user", "content": "Hello"}])
    for piece in session.generate(prompt):
        print(piece.text, end="")

Names are loaded when they are first used, so that importing an error costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import KimiVLError
    from .generation.channels import Piece
    from .generation.request import Request, Result
    from .generation.sampling import Sampling
    from .generation.stopping import GenerationLimits
    from .prompt.encoder import Prompt
    from .session import Session

__all__ = [
    "GenerationLimits",
    "KimiVLError",
    "Piece",
    "Prompt",
    "Request",
    "Result",
    "Sampling",
    "Session",
    "__version__",
]

_HOME = {
    "GenerationLimits": "generation.stopping",
    "KimiVLError": "errors",
    "Piece": "generation.channels",
    "Prompt": "prompt.encoder",
    "Request": "generation.request",
    "Result": "generation.request",
    "Sampling": "generation.sampling",
    "Session": "session",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # classes of any type
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
