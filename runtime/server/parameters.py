"""The fields of a chat request: those that are read, ignored, or refused by name.

One table for the check, the server's OpenAPI document, and people. A field whose value is null is
as good as absent.

Source: https://platform.openai.com/docs/api-reference/chat/create (read in October 2026); `top_k`,
`min_p`, `repetition_penalty`, `thinking_token_budget` and `guided_*` are vLLM's names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..generation.sampling import LEAST_PENALTY, MAX_LOGPROBS, MOST_PENALTY

MAX_STOPS = 16
_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}
EFFORTS: Mapping[str, int | None] = {
    "none": 0,
    "minimal": 128,
    "low": 1024,
    "medium": 2048,
    "high": None,
    "xhigh": None,
    "max": None,
}
"""Tokens of thinking after which the answer is begun; None never begins it. Source of the numbers:
LiteLLM, `litellm/constants.py`."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One field that is read."""

    types: tuple[str, ...]
    """Names of JSON Schema."""
    about: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()


def _count(about: str) -> Parameter:
    return Parameter(types=("integer",), least=1, about=about)


def _share(about: str) -> Parameter:
    return Parameter(types=("number",), least=0, most=1, about=about)


READ: Mapping[str, Parameter] = {
    "model": Parameter(types=("string",), about="A name from /v1/models; may be left out."),
    "messages": Parameter(types=("array",), about="The conversation, with text and images."),
    "stream": Parameter(types=("boolean",), about="Send the answer as it comes."),
    "stream_options": Parameter(
        types=("object",), about="`include_usage`: a last chunk with counts."
    ),
    "max_tokens": _count("Most tokens of the answer, thinking included."),
    "max_completion_tokens": _count("The same by its newer name."),
    "temperature": Parameter(types=("number",), least=0, about="0 is greedy."),
    "top_p": _share("Keep the best tokens that hold this share."),
    "top_k": Parameter(types=("integer",), least=-1, about="Keep the k best tokens; 0, -1 all."),
    "min_p": _share("Keep tokens of this share of the best one's probability."),
    "repetition_penalty": Parameter(
        types=("number",), least=LEAST_PENALTY, most=MOST_PENALTY, about="1 is none."
    ),
    "seed": Parameter(types=("integer",), about="Equal seeds draw equally."),
    "stop": Parameter(
        types=("string", "array"), about=f"At most {MAX_STOPS} texts that end the answer."
    ),
    "logprobs": Parameter(types=("boolean",), about="Tell log probabilities of the answer."),
    "top_logprobs": Parameter(
        types=("integer",), least=0, most=MAX_LOGPROBS, about="Best tokens at each place."
    ),
    "response_format": Parameter(types=("object",), about="text, json_object or json_schema."),
    "guided_regex": Parameter(types=("string",), about="What the answer has to match, whole."),
    "guided_choice": Parameter(types=("array",), about="Texts of which the answer is one."),
    "guided_grammar": Parameter(types=("string",), about="A grammar in Lark's form."),
    "reasoning_effort": Parameter(
        types=("string",), choices=tuple(EFFORTS), about="How long the model may think."
    ),
    "thinking_token_budget": Parameter(
        types=("integer",), least=0, about="The same in tokens, exactly."
    ),
}

IGNORED: Mapping[str, str] = {
    "user": "nothing is kept by user",
    "safety_identifier": "nothing is kept by user",
    "metadata": "nothing is stored",
    "store": "nothing is stored",
    "service_tier": "there is one tier",
    "prediction": "it would only save time",
    "prompt_cache_key": "every beginning is found by its tokens",
    "prompt_cache_options": "every beginning is found by its tokens",
    "prompt_cache_retention": "slots keep what they hold until others need them",
    "parallel_tool_calls": "without tools it says nothing",
}
"""Fields that change no answer, and why."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "verbosity": ("medium",),
    "audio": (),
    "moderation": (),
    "web_search_options": (),
}
"""Fields that are not implemented, with the values that ask for nothing; any other is refused."""

ADVICE: Mapping[str, str] = {
    "n": "send the request n times; the prompt is computed once",
    "frequency_penalty": "use repetition_penalty",
    "presence_penalty": "use repetition_penalty",
    "tools": "the model's chat template has no place for them; use response_format",
    "functions": "the model's chat template has no place for them; use response_format",
    "verbosity": "say in a message how long the answer should be",
    "audio": "answers are text",
    "moderation": "ask a moderation model about the conversation",
    "web_search_options": "nothing is searched for; put what was found into a message",
}


def find_problems(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Compare fields with the table.

    Returns:
        The name of a field and what is wrong with it, for each that is wrong.
    """
    problems = []
    for name, value in body.items():
        if value is None or name in IGNORED:
            continue
        if name in READ:
            problem = _problem(READ[name], value)
        elif name in NEUTRAL:
            problem = _refusal(name, value)
        else:
            problem = "unknown field"
        if problem is not None:
            problems.append((name, problem))
    if body.get("messages") is None:
        problems.append(("messages", "is missing"))
    return problems


def is_of_type(value: object, kind: str) -> bool:
    """Tell whether a JSON value is of a type of JSON Schema; true and false are no numbers."""
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _PYTHON_TYPES[kind])


def _problem(parameter: Parameter, value: Any) -> str | None:  # noqa: ANN401  any JSON value
    if not any(is_of_type(value, kind) for kind in parameter.types):
        return f"expected {' or '.join(parameter.types)}, found {_kind_of(value)}"
    if parameter.least is not None and not value >= parameter.least:
        return f"expected at least {parameter.least:g}, found {_short(value)}"
    if parameter.most is not None and not value <= parameter.most:
        return f"expected at most {parameter.most:g}, found {_short(value)}"
    if parameter.choices and value not in parameter.choices:
        return f"expected one of {', '.join(parameter.choices)}, found {_short(value)}"
    return None


def _refusal(name: str, value: object) -> str | None:
    is_neutral = any(value == one and type(value) is type(one) for one in NEUTRAL[name])
    if is_neutral or (isinstance(value, float) and value in NEUTRAL[name]):
        return None
    return f"not implemented; {ADVICE.get(name, 'leave it out')}"


def _kind_of(value: object) -> str:
    kinds = ("string", "boolean", "integer", "number", "array", "object")
    return next((kind for kind in kinds if is_of_type(value, kind)), "null")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
