"""Makes the tokenizer of the example: byte pairs merged on the task's own words.

The files have the form of the releases: base ranks, then 256 special slots at the same offsets.
"""

import base64
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from export.synthetic.text_files import write_text_files

from .questions import TEXT_WORDINGS, WORDINGS

NUM_BYTES = 256
BASE_TOKENS = 512

_FRAME = (
    "You are a helpful assistant system user image ◁think▷ ◁/think▷ and ; + = > < "
    "The number is this that picture one two three four five six seven eight nine ten "
    "yes no please show tell me about with from have not what when where why how much many "
    "left right top bottom between both each same different color text line word question "
    "answer think first second third last more less than there here can could would should"
)
_SPLIT = re.compile(r" ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]+|\s+")


def write_vocabulary(folder: Path, *, in_token_limit: int) -> None:
    """Write tokenizer, chat template, image rule and generation settings into `folder`."""
    write_text_files(folder, base_tokens=BASE_TOKENS, in_token_limit=in_token_limit)
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(learn_tokens()))
    (folder / "tiktoken.model").write_bytes(b"".join(lines))


def learn_tokens() -> list[bytes]:
    """Merge the most frequent neighbours until there are `BASE_TOKENS`; digits stay alone."""
    words = Counter(_words())
    pieces = {word: [bytes([byte]) for byte in word] for word in words}
    tokens = [bytes([value]) for value in range(NUM_BYTES)]
    while len(tokens) < BASE_TOKENS:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        # Equal counts are decided by the bytes, so that the result never varies.
        first, second = max(pairs, key=lambda pair: (pairs[pair], pair))
        if first + second not in tokens:
            tokens.append(first + second)
        pieces = {word: _merge(parts, first, second) for word, parts in pieces.items()}
    return tokens


def _words() -> list[bytes]:
    asked = [text for texts in (*WORDINGS.values(), *TEXT_WORDINGS.values()) for text in texts]
    text = " ".join([_FRAME, *(text.format(a="", b="") for text in asked * 3)])
    return [word.encode() for word in _SPLIT.findall(text)]


def _merge(parts: list[bytes], first: bytes, second: bytes) -> list[bytes]:
    merged: list[bytes] = []
    for part in parts:
        if merged and merged[-1] == first and part == second:
            merged[-1] = first + second
        else:
            merged.append(part)
    return merged
