"""The server's OpenAPI document, made of the table of parameters."""

from typing import Any

from .. import __version__
from .models import MODELS_PREFIX
from .parameters import IGNORED, NEUTRAL, READ, Parameter

_DATA_URL = {"type": "string", "description": "data:image/png;base64,..."}
_TEXT_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_IMAGE_PART = {
    "type": "object",
    "required": ["type", "image_url"],
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "required": ["url"],
            "properties": {
                "url": _DATA_URL,
                "detail": {"type": "string", "description": "Ignored."},
            },
        },
    },
}
_PLAIN_IMAGE_PART = {
    "type": "object",
    "required": ["type", "image"],
    "properties": {"type": {"const": "image"}, "image": _DATA_URL},
}
_VIDEO_PART = {
    "type": "object",
    "required": ["type", "video"],
    "properties": {
        "type": {"const": "video"},
        "video": {"type": "array", "items": _DATA_URL, "minItems": 1},
    },
}
_PARTS = [_TEXT_PART, _IMAGE_PART, _PLAIN_IMAGE_PART, _VIDEO_PART]
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"anyOf": _PARTS}, "minItems": 1},
            ]
        },
        **{
            name: {"type": ["string", "null"], "description": "Dropped."}
            for name in ("reasoning_content", "reasoning")
        },
        "name": {"type": ["string", "null"]},
    },
    "additionalProperties": False,
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
_MODELS = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
}
_COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "object": {"const": "chat.completion"},
        "choices": {"type": "array", "minItems": 1, "maxItems": 1},
        "usage": {"type": "object", "required": ["prompt_tokens", "completion_tokens"]},
    },
}
_ERRORS = {
    "400": "The request cannot be understood, or does not fit.",
    "401": "No key, or a wrong one.",
    "404": "No such model.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "421": "The host in the request is not this machine.",
    "429": "Too many requests are waiting.",
    "500": "The engine failed.",
    "503": "The server is shutting down.",
    "504": "The request took too long.",
}


def openapi_document() -> dict[str, Any]:
    """Describe every path."""
    chat = {
        "summary": "Answer a conversation.",
        "requestBody": {"required": True, "content": _json(_chat_schema())},
        "responses": {
            "200": {
                "description": "The answer, whole or as events.",
                "content": {**_json(_COMPLETION), "text/event-stream": {}},
            },
            **{
                status: {"description": about, "content": _json(_ERROR)}
                for status, about in _ERRORS.items()
            },
        },
    }
    plain = {"text/plain": {"schema": {"type": "string"}}}
    page = {"text/html": {"schema": {"type": "string"}}}
    status = _json({"type": "object", "required": ["status"]})
    return {
        "openapi": "3.1.0",
        "info": {"title": "kimivl", "version": __version__},
        "paths": {
            "/v1/chat/completions": {"post": chat},
            "/v1/models": {"get": _get("Name the models.", _json(_MODELS))},
            f"{MODELS_PREFIX}{{model}}": {
                "get": _get("Describe one.", _json(_MODEL), refusals=("401", "404", "421")),
                "parameters": [
                    {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
                ],
            },
            "/": {"get": _get("Chat in a browser.", page)},
            "/health/live": {"get": _get("Tell that the process runs.", status)},
            "/health/ready": {"get": _get("Tell whether requests are taken.", status, "503")},
            "/metrics": {"get": _get("Tell numbers to Prometheus.", plain)},
        },
    }


def _chat_schema() -> dict[str, Any]:
    properties = {name: _schema(parameter) for name, parameter in READ.items()}
    properties["messages"] = {"type": "array", "items": _MESSAGE, "minItems": 1}
    for name, why in IGNORED.items():
        properties[name] = {"description": f"Ignored: {why}."}
    for name, values in NEUTRAL.items():
        properties[name] = {"enum": [*values, None]}
    return {
        "type": "object",
        "required": ["messages"],
        "properties": properties,
        "additionalProperties": False,
    }


def _schema(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": [*parameter.types, "null"], "description": parameter.about}
    if parameter.least is not None:
        schema["minimum"] = parameter.least
    if parameter.most is not None:
        schema["maximum"] = parameter.most
    if parameter.choices:
        schema["enum"] = [*parameter.choices, None]
    return schema


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _get(
    summary: str,
    content: dict[str, Any],
    *others: str,
    refusals: tuple[str, ...] = ("401", "421"),
) -> dict[str, Any]:
    found = {status: {"description": summary, "content": content} for status in ("200", *others)}
    refused = {
        status: {"description": _ERRORS[status], "content": _json(_ERROR)} for status in refusals
    }
    return {"summary": summary, "responses": {**found, **refused}}
