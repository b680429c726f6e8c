"""The body of a chat request, checked and turned into what the runtime takes.

Nothing is fetched, decoded or compiled here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import describe_problems
from ..generation.sampling import Sampling
from ..generation.stopping import GenerationLimits
from .api_errors import ApiError
from .constraints import GrammarSpec, read_constraint
from .parameters import EFFORTS, MAX_STOPS, find_problems

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
MAX_VALUES = 1_000_000
"""Of what makes a body costly to read: lists, objects, names, items. 128K tokens hold fewer, and
pictures none."""
_NUM_SEEDS = 1 << 64
_MARKS = (b"{", b"[", b":", b",")
_STREAM_OPTIONS = {"include_usage", "include_obfuscation"}
"""The second pads chunks against readers of encrypted traffic; nothing is padded here."""


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One request as it was sent; what is absent is left to the release and the server."""

    model: str | None
    messages: list[Any]
    """Not checked."""
    sampling: Mapping[str, Any]
    """Fields of `Sampling` that were given."""
    limits: Mapping[str, Any]
    """Fields of `GenerationLimits` that were given."""
    constraint: GrammarSpec | None
    has_logprobs: bool
    top_logprobs: int
    is_stream: bool
    has_usage_chunk: bool

    @classmethod
    def from_body(cls, body: bytes) -> "ChatRequest":
        """Read a body.

        Raises:
            ApiError: it is no JSON object, or some fields cannot be used; all are named at once.
            InputError: a number has no meaning for the sampling.
        """
        fields = _read_object(body)
        problems = find_problems(fields)
        if not problems:
            problems = _find_contradictions(fields)
        if problems:
            raise _refused(problems)
        given = {name: value for name, value in fields.items() if value is not None}
        top_logprobs = given.get("top_logprobs", 0)
        has_logprobs = given.get("logprobs", False)
        sampling = _read_sampling(given)
        # One is the least that the sampler reports; what was not asked for is left out later.
        sampling["logprobs"] = max(top_logprobs, 1) if has_logprobs else 0
        limits = _read_limits(given)
        Sampling(**sampling)
        GenerationLimits(**limits)
        return cls(
            model=given.get("model"),
            messages=[_with_known_role(message) for message in given["messages"]],
            sampling=sampling,
            limits=limits,
            constraint=read_constraint(given),
            has_logprobs=has_logprobs,
            top_logprobs=top_logprobs,
            is_stream=given.get("stream", False),
            has_usage_chunk=(given.get("stream_options") or {}).get("include_usage") is True,
        )


def _read_object(body: bytes) -> dict[str, Any]:
    if sum(map(body.count, _MARKS)) > MAX_VALUES:
        raise ApiError(
            400,
            f"the body has more than {MAX_VALUES:,} brackets, colons and commas; that never fits",
            code="too_large",
        )
    try:
        # Decoded here: for bytes `json` takes other encodings too, and halves of characters.
        fields = json.loads(body.decode(), parse_constant=_refuse_constant)
        if _SURROGATE.search(body):  # half a character, which no text can hold
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ApiError(400, f"the body is not JSON: {reason}", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise ApiError(400, "the body is JSON, but no object", code="invalid_json")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _find_contradictions(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Check what no single field tells."""
    problems = []
    lengths = {fields.get("max_tokens"), fields.get("max_completion_tokens")} - {None}
    if len(lengths) > 1:
        problems.append(("max_tokens", "differs from max_completion_tokens, which is the same"))
    if fields.get("top_logprobs") and not fields.get("logprobs"):
        problems.append(("top_logprobs", "needs logprobs: true"))
    if fields.get("stream_options") is not None and not fields.get("stream"):
        problems.append(("stream_options", "needs stream: true"))
    options = fields.get("stream_options") or {}
    unknown = set(options) - _STREAM_OPTIONS
    if unknown:
        problems.append(("stream_options", f"unknown: {', '.join(sorted(unknown))[:60]}"))
    if not isinstance(options.get("include_usage", False), bool | None):
        problems.append(("stream_options", "include_usage: expected boolean"))
    stop = fields.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(one, str) and one for one in stops) or len(stops) > MAX_STOPS:
        problems.append(("stop", f"expected at most {MAX_STOPS} strings, none empty"))
    return problems


def _refused(problems: list[tuple[str, str]]) -> ApiError:
    listed = [f"{name[:60]}: {problem}" for name, problem in problems]
    return ApiError(
        400, describe_problems("request", listed), code="invalid_value", param=problems[0][0][:60]
    )


def _read_sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    sampling = {name: given[name] for name in _SAMPLING if name in given}
    if sampling.get("top_k") == -1:  # vLLM's word for all
        sampling["top_k"] = 0
    if sampling.get("seed", 0) < 0:  # other servers take them, -1 among them
        sampling["seed"] %= _NUM_SEEDS
    for name, value in sampling.items():
        if name not in ("top_k", "seed"):
            try:
                sampling[name] = float(value)
            except OverflowError as error:
                raise _refused([(name, "the number is too large")]) from error
    if sampling.get("top_p") == 0:  # the fewest tokens that hold nothing: the best one
        del sampling["top_p"]
        sampling["temperature"] = 0.0
    return sampling


def _read_limits(given: Mapping[str, Any]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for name in ("max_tokens", "max_completion_tokens"):
        if name in given:
            limits["max_new_tokens"] = given[name]
    if "reasoning_effort" in given:
        limits["max_thinking_tokens"] = EFFORTS[given["reasoning_effort"]]
    if "thinking_token_budget" in given:
        limits["max_thinking_tokens"] = given["thinking_token_budget"]
    if given.get("stop"):
        stop = given["stop"]
        limits["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return limits


def _with_known_role(message: object) -> object:
    if isinstance(message, dict) and message.get("role") == "developer":
        return {**message, "role": "system"}  # OpenAI's newer name for it
    return message
