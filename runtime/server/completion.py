"""The objects of an answer: `chat.completion`, and its chunks.

Source: https://platform.openai.com/docs/api-reference/chat; `reasoning_content` is the name that
vLLM, SGLang, llama.cpp and DeepSeek's API have for thinking.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..generation.request import Usage


@dataclass(frozen=True, kw_only=True)
class Heading:
    """What all objects of one answer begin with."""

    answer_id: str
    model: str
    created: int
    """In seconds since 1970."""
    fingerprint: str

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a chunk."""
        return self._object("chat.completion.chunk", choices)

    def completion(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a whole answer, but for its usage."""
        return self._object("chat.completion", choices)

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


@dataclass(kw_only=True)
class WholeAnswer:
    """The text of both channels, and what is told of the answer's tokens."""

    answer: str = ""
    thinking: str = ""
    tokens: list[dict[str, Any]] = field(default_factory=list)


def delta_choice(
    delta: Mapping[str, Any],
    *,
    tokens: list[dict[str, Any]] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    """Make the choice of a chunk."""
    return {
        "index": 0,
        "delta": dict(delta),
        "logprobs": _logprobs(tokens),
        "finish_reason": finish_reason,
    }


def whole_choice(whole: WholeAnswer, *, finish_reason: str, has_logprobs: bool) -> dict[str, Any]:
    """Make the choice of a whole answer."""
    message: dict[str, Any] = {"role": "assistant", "content": whole.answer, "refusal": None}
    if whole.thinking:
        message["reasoning_content"] = whole.thinking
    return {
        "index": 0,
        "message": message,
        "logprobs": _logprobs(whole.tokens if has_logprobs else None),
        "finish_reason": finish_reason,
    }


def usage_fields(usage: Usage) -> dict[str, Any]:
    """Count tokens in the API's words."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.new_tokens,
        "total_tokens": usage.prompt_tokens + usage.new_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.reused_tokens,
            "image_tokens": usage.image_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
    }


def _logprobs(tokens: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if tokens is None else {"content": tokens, "refusal": None}
