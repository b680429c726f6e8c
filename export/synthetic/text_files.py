"""Writes the text files of a synthetic checkpoint: tokenizer, chat template, image rule.

The layout is that of a release and the names of the special tokens stand at the same offsets; the
vocabulary is made up: all bytes, then combinations of frequent letters first.

Source: Kimi-VL `tokenizer_config.json`, `chat_template.jinja`, `preprocessor_config.json`.
"""

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.prompt import special_tokens as names

NUM_BYTES = 256

SPECIAL_OFFSETS = {
    names.BOS: 0,
    names.EOS: 1,
    names.IM_END: 2,
    names.IM_USER: 3,
    names.IM_ASSISTANT: 4,
    names.START_HEADER: 6,
    names.END_HEADER: 7,
    names.END_OF_TURN: 9,
    names.IM_SYSTEM: 10,
    names.IM_MIDDLE: 17,
    names.MEDIA_START: 18,
    names.MEDIA_CONTENT: 19,
    names.MEDIA_END: 20,
    names.MEDIA_PAD: 21,
    names.UNK: 254,
    names.PAD: 255,
}
"""Distance of each named special token from the end of the base ranks, as in the releases."""

CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
    {{- '<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role in ('system', 'user', 'assistant') -%}
        {{- '<|im_' + message.role + '|>' -}}
    {%- endif -%}
    {{- message.role + '<|im_middle|>' -}}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
                {{- '<|media_start|>image<|media_content|><|media_pad|><|media_end|>' -}}
            {%- else -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_assistant|>assistant<|im_middle|>' -}}
{%- endif -%}
"""

_LETTERS = b"etaoinshrdlcumwfgypbvkjxqz"  # the frequent ones first
_STARTS = b" " + _LETTERS
_LONGEST = 4


def write_text_files(folder: Path, *, base_tokens: int, in_token_limit: int) -> None:
    """Write tokenizer, chat template, image rule and generation settings.

    Args:
        folder: where to write; made if it is missing.
        base_tokens: number of base ranks; 256 special slots follow them.
        in_token_limit: patches above which an image is shrunk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = (
        base64.b64encode(token) + b" %d\n" % rank
        for rank, token in enumerate(_make_tokens(base_tokens))
    )
    (folder / "tiktoken.model").write_bytes(b"".join(lines))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", _make_tokenizer_config(base_tokens))
    _write_json(folder / "preprocessor_config.json", _make_image_rule(in_token_limit))
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": base_tokens + SPECIAL_OFFSETS[names.BOS],
            "eos_token_id": base_tokens + SPECIAL_OFFSETS[names.IM_END],
            "pad_token_id": base_tokens + SPECIAL_OFFSETS[names.PAD],
        },
    )


def _make_tokens(count: int) -> list[bytes]:
    tokens = list(itertools.islice(_all_tokens(), count))
    if not NUM_BYTES <= count == len(tokens):
        raise ValueError(
            f"base_tokens must be at least {NUM_BYTES} and not above what letters give"
        )
    return tokens


def _all_tokens() -> Iterator[bytes]:
    """Give single bytes, then longer and longer strings; each is a shorter one plus a letter."""
    yield from (bytes([value]) for value in range(NUM_BYTES))
    for length in range(2, _LONGEST + 1):
        yield from map(bytes, itertools.product(_STARTS, *[_LETTERS] * (length - 1)))


def _make_tokenizer_config(base_tokens: int) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "added_tokens_decoder": {
            str(base_tokens + offset): {"content": name, **flags, "special": True}
            for name, offset in SPECIAL_OFFSETS.items()
        },
        "bos_token": names.BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": names.EOS,
        "pad_token": names.PAD,
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": names.UNK,
    }


def _make_image_rule(in_token_limit: int) -> dict[str, Any]:
    return {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "in_token_limit": in_token_limit,
        "num_pooled_tokens": 1024,
        "pad_input": True,
        "patch_size": 14,
    }


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
