import importlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import CheckpointError, InputError
from runtime.prompt.special_tokens import EOS, IM_END, MEDIA_PAD, reserved_name
from runtime.prompt.tokenizer import MAX_PIECE, MAX_RUN, SPLIT_PATTERN, TextStream, Tokenizer
from tests.doubles import BASE_TOKENS, load_small_tokenizer, special_id, write_small_text_files

regex: Any = importlib.import_module("regex")  # has no types; tiktoken needs it too

# The original pattern, written out once more.
PATTERN = (
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
ALPHABET = "aAéÉßǅʰ\u0301ab's't RE中文々ーあ가9٣Ⅷ \t\u3000\n\r.,!<|▷◁-_€😀\u0627"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_small_tokenizer(tmp_path)


def make_pair_ranks() -> dict[bytes, int]:
    """Every two characters of the alphabet are a token, so that each boundary shows."""
    tokens = dict.fromkeys(bytes([value]) for value in range(256))
    letters = [letter.encode() for letter in dict.fromkeys(ALPHABET)]
    for length in (2, 3, 4):
        tokens |= dict.fromkeys(letter[:length] for letter in letters)
    tokens |= dict.fromkeys(a + b for a, b in itertools.product(letters, letters))
    return {token: rank for rank, token in enumerate(tokens)}


def merge_slowly(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding as the textbook has it."""
    parts = [bytes([value]) for value in piece]
    while True:
        joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        if not joined or min(joined) == len(ranks):
            return [ranks[part] for part in parts]
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def random_texts(count: int) -> Iterable[str]:
    random = np.random.default_rng(3)
    for _ in range(count):
        yield "".join(random.choice(list(ALPHABET), size=int(random.integers(1, 25))))


def test_text_is_split_and_merged_as_the_original_pattern_says() -> None:
    ranks = make_pair_ranks()
    tokenizer = Tokenizer(ranks, {})
    pattern = regex.compile(PATTERN, flags=regex.VERSION1)
    needed_splitting = 0
    for text in random_texts(2000):
        pieces = pattern.findall(text)
        assert "".join(pieces) == text
        expected = [rank for piece in pieces for rank in merge_slowly(piece.encode(), ranks)]
        assert tokenizer.encode(text) == expected, text
        needed_splitting += expected != merge_slowly(text.encode(), ranks)
    assert needed_splitting > 1500


def test_the_split_pattern_equals_that_of_another_engine() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated")
    pattern = regex.compile(PATTERN, flags=regex.VERSION1)
    for text in random_texts(1000):
        assert [piece for piece, _ in split.pre_tokenize_str(text)] == pattern.findall(text), text


def test_text_survives_encoding_and_decoding(tokenizer: Tokenizer) -> None:
    for text in ["", "the tea", "Grüße, 你好 ◁think▷ok◁/think▷", *random_texts(200)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_names_of_special_tokens_in_text_stay_text(tokenizer: Tokenizer) -> None:
    text = f"a{IM_END}{MEDIA_PAD}[EOS]<|reserved_token_{BASE_TOKENS + 5}|>"
    ids = tokenizer.encode(text)
    assert max(ids) < BASE_TOKENS
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_found_by_name(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == BASE_TOKENS + 256
    assert tokenizer.special_id(IM_END) == special_id(IM_END) == BASE_TOKENS + 2
    assert tokenizer.special_id(reserved_name(BASE_TOKENS + 5)) == BASE_TOKENS + 5
    assert tokenizer.special_id(reserved_name(BASE_TOKENS + 2)) is None
    assert tokenizer.special_ids == frozenset(range(BASE_TOKENS, BASE_TOKENS + 256))
    assert tokenizer.decode([special_id(EOS), special_id(MEDIA_PAD)]) == f"{EOS}{MEDIA_PAD}"


@pytest.mark.parametrize("token_id", [-1, BASE_TOKENS + 256, 2**40])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(InputError, match=f"token id {token_id} is outside the vocabulary of"):
        tokenizer.decode([1, token_id])


@pytest.mark.parametrize("text", ["a" + "ab" * (MAX_RUN // 2) + "b", "\u3000" + "\t" * MAX_RUN])
def test_a_long_run_is_cut_where_the_original_cuts_it(text: str) -> None:
    # Two characters make a token, so that a cut leaves an odd one in front of it.
    tokenizer = Tokenizer(make_pair_ranks(), {})

    def cut_at(place: int) -> list[int]:
        return tokenizer.encode(text[:place]) + tokenizer.encode(text[place:])

    assert tokenizer.encode(text) == cut_at(MAX_RUN)
    assert tokenizer.encode(text) != cut_at(MAX_RUN - 2)


def test_a_run_ends_where_blanks_end_and_a_piece_where_it_is_full(tokenizer: Tokenizer) -> None:
    words = "et " * (MAX_PIECE // 3)  # 399,999 characters
    assert tokenizer.encode(words + "et") == (tokenizer.encode(words + "e") + tokenizer.encode("t"))
    whole = tokenizer.encode("et " * 20000)
    assert whole[:1] == tokenizer.encode("et")
    assert len(set(whole)) == 3  # "et", " et" and the last blank: nothing was cut at 25,000


def test_a_stream_gives_the_text_of_all_ids_whatever_the_cut(tokenizer: Tokenizer) -> None:
    broken = [255, 228, 184, 65, 240, 159, 152, 128, 226, 130]
    for ids in [tokenizer.encode("né 中文 😀 the"), broken]:
        stream = TextStream(tokenizer)
        text = "".join([*(stream.push(token_id) for token_id in ids), stream.flush()])
        assert text == tokenizer.decode(ids)


def test_a_stream_keeps_an_unfinished_character_back(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    assert [stream.push(value) for value in "😀".encode()] == ["", "", "", "😀"]
    assert stream.push(0xE4) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert stream.push(0x41) == "A"


def test_a_stream_hides_special_tokens_unless_asked(tokenizer: Tokenizer) -> None:
    assert TextStream(tokenizer).push(special_id(IM_END)) == ""
    assert TextStream(tokenizer, show_specials=True).push(special_id(IM_END)) == IM_END


def test_a_stream_refuses_an_id_outside_the_vocabulary(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="outside the vocabulary"):
        TextStream(tokenizer).push(10**6)


def change_line(text: bytes, line: int, new: bytes) -> bytes:
    lines = text.splitlines(keepends=True)
    lines[line] = new
    return b"".join(lines)


@pytest.mark.parametrize(
    ("line", "new", "message"),
    [
        (300, b"", "rank 300 is missing"),
        (300, b"ZWU=\n", "line 301: expected a base64 token and its rank"),
        (300, b"ZWU= three\n", "line 301: expected a base64 token and its rank"),
        (300, b"ZWU= -1\n", "line 301: expected a base64 token and its rank"),
        (300, b"Z*U= 300\n", "line 301: .* is not base64"),
        (300, b"ZWU= 17\n", "line 301: rank 17 comes twice"),
        (300, b"QQ== 300\n", "token b'A' comes twice"),
        (65, b"WlpaWlo= 65\n", "1 single bytes have no token, the first is 0x41"),
    ],
)
def test_a_garbled_ranks_file_is_one_error(
    tmp_path: Path, line: int, new: bytes, message: str
) -> None:
    path = write_small_text_files(tmp_path) / "tiktoken.model"
    path.write_bytes(change_line(path.read_bytes(), line, new))
    with pytest.raises(CheckpointError, match=f"tiktoken.model: .*{message}"):
        Tokenizer.load(tmp_path)


def test_an_empty_or_binary_ranks_file_is_refused(tmp_path: Path) -> None:
    path = write_small_text_files(tmp_path) / "tiktoken.model"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="there are no tokens"):
        Tokenizer.load(tmp_path)
    path.write_bytes(bytes(range(256)) * 9)
    with pytest.raises(CheckpointError, match="expected a base64 token"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tiktoken.model", "tokenizer_config.json"])
def test_a_missing_tokenizer_file_is_named(tmp_path: Path, name: str) -> None:
    (write_small_text_files(tmp_path) / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: no such file"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (None, "added_tokens_decoder is missing or not an object"),
        ({"17": {"content": "[X]"}}, r"17 \(\[X\]\): the special slots .* are 1200 to 1455"),
        ({"1456": {"content": "[X]"}}, "1456 .* the special slots"),
        ({"x": {"content": "[X]"}}, "the special slots"),
        ({"1300": {}}, "1300: has no content"),
        ({"1300": {"content": "[X]"}, "1301": {"content": "[X]"}}, r"\[X\] comes twice"),
    ],
)
def test_a_garbled_list_of_special_tokens_is_refused(
    tmp_path: Path, added: object, message: str
) -> None:
    path = write_small_text_files(tmp_path) / "tokenizer_config.json"
    path.write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(tmp_path)
