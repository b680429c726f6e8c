"""Reads the two tokenizer files of a checkpoint; knows nothing of how text becomes ids.

`tiktoken.model` has one line per base token: its bytes in base64, a space, its rank. The ranks are
0, 1, 2, ... without gaps. `tokenizer_config.json` names some of the 256 special slots behind them.

Source: Kimi-VL `tokenization_moonshot.py` (TikTokenTokenizer.__init__), tiktoken `load.py`.
"""

import base64
import binascii
from pathlib import Path

from ..errors import CheckpointError, describe_problems
from ..json_file import read_json_object
from .special_tokens import NUM_SPECIAL_SLOTS, reserved_name

RANKS_FILE = "tiktoken.model"
CONFIG_FILE = "tokenizer_config.json"


def load_ranks(path: Path) -> dict[bytes, int]:
    """Read the base tokens and their ranks, in the order of the ranks.

    Raises:
        CheckpointError: the file is missing or a line is garbled; a token or rank comes twice; the
            ranks have gaps; a single byte has no token.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file; a checkpoint folder holds {path.name}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: not readable: {error}") from error
    tokens: dict[int, bytes] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            token, rank = _parse_line(line)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if rank in tokens:
            problems.append(f"line {number}: rank {rank} comes twice")
        tokens[rank] = token
    ranks = {tokens[rank]: rank for rank in sorted(tokens)}
    if not problems:
        problems = _find_holes(tokens, ranks)
    if problems:
        raise CheckpointError(describe_problems(str(path), problems))
    return ranks


def _parse_line(line: bytes) -> tuple[bytes, int]:
    fields = line.split()
    if len(fields) != 2 or not fields[1].isdigit() or len(fields[1]) > 9:
        raise ValueError(f"expected a base64 token and its rank, found {line[:40]!r}")
    try:
        token = base64.b64decode(fields[0], validate=True)
    except binascii.Error as error:
        raise ValueError(f"{fields[0][:40]!r} is not base64") from error
    if not token:
        raise ValueError("the token is empty")
    return token, int(fields[1])


def _find_holes(tokens: dict[int, bytes], ranks: dict[bytes, int]) -> list[str]:
    if not tokens:
        return ["there are no tokens"]
    problems = []
    missing = next((rank for rank in range(len(tokens)) if rank not in tokens), None)
    if missing is not None:
        problems.append(f"rank {missing} is missing below the highest, {max(tokens)}")
    if len(ranks) != len(tokens):
        twice = next(rank for rank, token in tokens.items() if ranks[token] != rank)
        problems.append(f"token {tokens[twice]!r} comes twice")
    absent = [value for value in range(256) if bytes([value]) not in ranks]
    if absent:
        problems.append(f"{len(absent)} single bytes have no token, the first is {absent[0]:#04x}")
    return problems


def load_special_names(path: Path, *, first_id: int) -> dict[str, int]:
    """Read the names of the special slots; slots without a name get the reserved one.

    Args:
        path: a `tokenizer_config.json`.
        first_id: id of the first slot, which is the number of base ranks.

    Returns:
        All 256 names with their ids, in the order of the ids.

    Raises:
        CheckpointError: the file is unreadable, or an entry is outside the slots or named twice.
    """
    entries = read_json_object(path).get("added_tokens_decoder")
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: added_tokens_decoder is missing or not an object")
    slots = range(first_id, first_id + NUM_SPECIAL_SLOTS)
    names = {slot: reserved_name(slot) for slot in slots}
    problems: list[str] = []
    for key, entry in entries.items():
        name = _read_name(entry)
        if name is None:
            problems.append(f"added_tokens_decoder {key}: has no content")
        elif not key.isdecimal() or int(key) not in names:
            problems.append(
                f"added_tokens_decoder {key} ({name}): the special slots behind the base ranks "
                f"are {slots.start} to {slots.stop - 1}"
            )
        else:
            names[int(key)] = name
    ids = {name: slot for slot, name in names.items()}
    if len(ids) != len(names):
        twice = next(name for slot, name in names.items() if ids[name] != slot)
        problems.append(f"added_tokens_decoder: {twice} comes twice")
    if problems:
        raise CheckpointError(describe_problems(str(path), problems))
    return ids


def _read_name(entry: object) -> str | None:
    content = entry.get("content") if isinstance(entry, dict) else None
    return content if isinstance(content, str) and content else None
