"""Names of the special tokens; their ids are facts of a checkpoint and come from its files.

Source: Kimi-VL `tokenizer_config.json` and `tokenization_moonshot.py` (TikTokenTokenizer).
"""

NUM_SPECIAL_SLOTS = 256
"""Ids behind the base ranks that never come from ordinary text; most of them have no use."""

BOS = "[BOS]"
EOS = "[EOS]"
UNK = "[UNK]"
PAD = "[PAD]"
END_OF_TURN = "[EOT]"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"

IM_SYSTEM = "<|im_system|>"
IM_USER = "<|im_user|>"
IM_ASSISTANT = "<|im_assistant|>"
IM_MIDDLE = "<|im_middle|>"
IM_END = "<|im_end|>"

MEDIA_START = "<|media_start|>"
MEDIA_CONTENT = "<|media_content|>"
MEDIA_PAD = "<|media_pad|>"
MEDIA_END = "<|media_end|>"

THINK_START = "◁think▷"
"""Opens the thinking part of an answer; ordinary text of several tokens, not a special token."""
THINK_END = "◁/think▷"
"""Closes the thinking part; ordinary text as well."""


def reserved_name(token_id: int) -> str:
    """Name a special slot that the checkpoint leaves without a name."""
    return f"<|reserved_token_{token_id}|>"
