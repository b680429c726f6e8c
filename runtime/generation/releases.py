"""What the three releases of Kimi-VL-A3B want by default, and how to tell them apart on disk.

A checkpoint does not say its own name. Two of its files give hints: `in_token_limit` in
`preprocessor_config.json` (16384 only in the third release) and `temperature` in
`generation_config.json`. Only hints that leave exactly one release name it.

Does not know: tensors, prompts.

Source: the model cards of Kimi-VL-A3B-Instruct, -Thinking and -Thinking-2506.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import KimiVLConfig
from ..config_fields import Reader
from ..errors import CheckpointError, describe_problems
from ..json_file import read_json_object
from ..prompt.special_tokens import IM_END
from ..prompt.tokenizer import Tokenizer
from .sampling import Sampling

_GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True, kw_only=True)
class Release:
    """One published release and the values that its authors recommend."""

    name: str
    temperature: float
    max_new_tokens: int | None
    """None when the authors name none: all that fits."""
    in_token_limit: int
    """Most patches of one image before merging, as the checkpoint's preprocessor file says."""

    @property
    def sampling(self) -> Sampling:
        """The recommended sampling."""
        return Sampling(temperature=self.temperature)


INSTRUCT = Release(name="instruct", temperature=0.2, max_new_tokens=None, in_token_limit=4096)
THINKING = Release(name="thinking", temperature=0.6, max_new_tokens=None, in_token_limit=4096)
THINKING_2506 = Release(
    name="thinking-2506", temperature=0.8, max_new_tokens=32768, in_token_limit=16384
)
RELEASES = (INSTRUCT, THINKING, THINKING_2506)


def detect_release(folder: Path) -> Release | None:
    """Name the release in a checkpoint folder, or None where its files do not tell.

    Raises:
        CheckpointError: one of the two files is there but is not a JSON object.
    """
    temperature = _read_optional(folder / _GENERATION_FILE).get("temperature")
    in_token_limit = _read_optional(folder / "preprocessor_config.json").get("in_token_limit")
    by_temperature = [release for release in RELEASES if release.temperature == temperature]
    by_limit = [release for release in RELEASES if release.in_token_limit == in_token_limit]
    # A hint that fits no release says nothing: users change temperatures and image sizes.
    both = [release for release in by_temperature or RELEASES if release in (by_limit or RELEASES)]
    return both[0] if len(both) == 1 else None


def default_sampling(release: Release | None) -> Sampling:
    """Return the recommended sampling, greedy for an unknown release."""
    return Sampling.greedy() if release is None else release.sampling


def stop_ids(config: KimiVLConfig, folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Collect every id that ends an answer: of the config, the generation config, the template.

    Raises:
        CheckpointError: `generation_config.json` is not JSON or names no possible ids, or the
            tokenizer has no end of message.
    """
    path = folder / _GENERATION_FILE
    reader = Reader(_read_optional(path), prefix="")
    ids = _read_ids(reader, config)
    if reader.problems:
        raise CheckpointError(describe_problems(str(path), reader.problems))
    end = tokenizer.special_id(IM_END)
    if end is None:
        raise CheckpointError(
            f"{folder}: the tokenizer has no {IM_END}, which ends every message; "
            "its tokenizer_config.json must name it"
        )
    return frozenset({*config.eos_token_ids, *ids, end})


def check_generation(config: KimiVLConfig, folder: Path, tokenizer: Tokenizer) -> None:
    """Refuse what would be found wrong with `generation_config.json` when a session is opened.

    Raises:
        CheckpointError: as `stop_ids` and `detect_release`; or the temperature is no number.
    """
    path = folder / _GENERATION_FILE
    fields = _read_optional(path)
    reader = Reader(fields, prefix="")
    _read_ids(reader, config)
    temperature = fields.get("temperature")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float | None):
        reader.problem(f"temperature: expected a number, found {temperature!r}")
    if reader.problems:
        raise CheckpointError(describe_problems(str(path), reader.problems))
    detect_release(folder)
    stop_ids(config, folder, tokenizer)


def _read_ids(reader: Reader, config: KimiVLConfig) -> list[int]:
    ids = reader.ids("eos_token_id")
    for token_id in ids:
        if not 0 <= token_id < config.decoder.vocab_size:
            reader.problem(
                f"eos_token_id {token_id} is outside the vocabulary of {config.decoder.vocab_size}"
            )
    return ids


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}
