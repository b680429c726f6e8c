import time
from pathlib import Path

import pytest

from export.synthetic.text_files import write_text_files
from runtime.prompt.special_tokens import EOS, IM_END, MEDIA_PAD, PAD
from runtime.prompt.tokenizer import Tokenizer

RELEASED_BASE_TOKENS = 163_584


def test_the_full_vocabulary_is_written_fast_and_has_the_released_ids(tmp_path: Path) -> None:
    start = time.perf_counter()
    write_text_files(tmp_path, base_tokens=RELEASED_BASE_TOKENS, in_token_limit=16384)
    assert time.perf_counter() - start < 5
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 163_840
    released = {EOS: 163_585, IM_END: 163_586, MEDIA_PAD: 163_605, PAD: 163_839}
    assert {name: tokenizer.special_id(name) for name in released} == released
    assert len(tokenizer.encode(" then")) < len(" then")


def test_the_same_call_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_text_files(tmp_path / name, base_tokens=700, in_token_limit=64)
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert len(first) == 5


@pytest.mark.parametrize("base_tokens", [0, 255, 10**7])
def test_an_impossible_vocabulary_is_refused(tmp_path: Path, base_tokens: int) -> None:
    with pytest.raises(ValueError, match="base_tokens must be at least 256"):
        write_text_files(tmp_path, base_tokens=base_tokens, in_token_limit=64)


def test_every_number_of_merges_from_none_is_possible(tmp_path: Path) -> None:
    for base_tokens in (256, 257, 1000):
        write_text_files(tmp_path, base_tokens=base_tokens, in_token_limit=64)
        assert Tokenizer.load(tmp_path).vocab_size == base_tokens + 256
