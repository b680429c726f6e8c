"""File names of a checkpoint folder, and strict reading of its small JSON files.

Does not know: what the files mean.
"""

import json
from typing import Any

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
SYNTH_FILE = "synth.json"
TEXT_FILES = (
    CONFIG_FILE,
    "tokenizer_config.json",
    "tiktoken.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "generation_config.json",
    "special_tokens_map.json",
)
"""What a checkpoint holds beside its tensors; code files are never read."""


def object_from_json(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object in which no key occurs twice.

    Raises:
        ValueError: anything else; the message is a phrase.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_pairs)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"key {name} occurs twice")
            seen.add(name)
    return fields
