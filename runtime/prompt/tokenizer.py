"""Text to ids and back, for the checkpoint's own byte-level BPE.

Special tokens are never parsed from text: whoever wants one asks for its id by name. Which text
surrounds a message is the chat template's business.

Source: Kimi-VL `tokenization_moonshot.py` (TikTokenTokenizer).
"""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

import tiktoken

from ..errors import InputError
from .tokenizer_files import CONFIG_FILE, RANKS_FILE, load_ranks, load_special_names

# Uppercase-like and lowercase-like letters, both without Han, which has a rule of its own.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}",
        f"{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""What may become one token at most; alternatives in order, the first that matches wins."""

MAX_PIECE = 400_000
"""Characters that go to the encoder at once."""
MAX_RUN = 25_000
"""Longest run of only blanks or only other characters; a longer one is cut."""


class Tokenizer:
    """A vocabulary of base ranks followed by 256 special slots."""

    def __init__(self, ranks: dict[bytes, int], specials: dict[str, int]) -> None:
        """Build the encoder.

        Args:
            ranks: base tokens and their ranks 0, 1, 2, ..., with all single bytes among them.
            specials: names and ids of the slots behind them.
        """
        self._specials = dict(specials)
        self._special_ids = frozenset(specials.values())
        self._vocab_size = len(ranks) + len(specials)
        self._encoding = tiktoken.Encoding(
            "kimi_vl",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=ranks,
            special_tokens=self._specials,
            explicit_n_vocab=self._vocab_size,
        )

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `tiktoken.model` and `tokenizer_config.json` of a checkpoint folder.

        Raises:
            CheckpointError: one of them is missing, garbled or contradicts the other.
        """
        ranks = load_ranks(folder / RANKS_FILE)
        return cls(ranks, load_special_names(folder / CONFIG_FILE, first_id=len(ranks)))

    @property
    def vocab_size(self) -> int:
        """Number of ids, special slots included."""
        return self._vocab_size

    @property
    def special_names(self) -> tuple[str, ...]:
        """Names of all special slots."""
        return tuple(self._specials)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special slots, the reserved ones included."""
        return self._special_ids

    def special_id(self, name: str) -> int | None:
        """Return the id of a special token, or None if the checkpoint has none of that name."""
        return self._specials.get(name)

    def encode(self, text: str) -> list[int]:
        """Turn text into ids; a special token's name in it is text like any other."""
        ids: list[int] = []
        for start in range(0, len(text), MAX_PIECE):
            for piece in _split_runs(text[start : start + MAX_PIECE]):
                ids.extend(self._encoding.encode_ordinary(piece))
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Join the bytes of ids; a special token gives its name.

        Raises:
            InputError: an id is outside the vocabulary.
        """
        known = []
        for token_id in ids:
            if not 0 <= token_id < self._vocab_size:
                raise InputError(
                    f"token id {token_id} is outside the vocabulary of {self._vocab_size}"
                )
            known.append(int(token_id))
        return self._encoding.decode_bytes(known)

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            InputError: an id is outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class TextStream:
    """Turns ids into text one by one and keeps an unfinished character back.

    What all calls of `push` and the last `flush` return, joined, is `decode` of the ids without
    the special ones.
    """

    def __init__(self, tokenizer: Tokenizer, *, show_specials: bool = False) -> None:
        """Start an empty stream; `show_specials` writes the names of special tokens too."""
        self._tokenizer = tokenizer
        self._show_specials = show_specials
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Add one id and return the text that it completes, often nothing.

        Raises:
            InputError: the id is outside the vocabulary.
        """
        data = self._tokenizer.decode_bytes([token_id])
        if token_id in self._tokenizer.special_ids and not self._show_specials:
            return ""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """End the text: return U+FFFD for an unfinished character, and start anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def _split_runs(text: str) -> Iterator[str]:
    """Cut text wherever more than `MAX_RUN` characters are all blank or all not blank.

    The pattern engine recurses over such a run.
    """
    start = run = 0
    is_blank = False
    if len(text) <= MAX_RUN:
        yield text
        return
    for index, character in enumerate(text):
        if character.isspace() != is_blank:
            is_blank = not is_blank
            run = 0
        run += 1
        if run > MAX_RUN:
            yield text[start:index]
            start = index
            run = 1
    yield text[start:]
