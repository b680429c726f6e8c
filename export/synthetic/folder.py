"""Write a synthetic checkpoint folder: only a seed, or real shards as the release has them.

Does not know: how values are drawn (`tensors.py`), what the tokenizer files hold
(`text_files.py`).
"""

import errno
import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from runtime.config import KimiVLConfig
from runtime.errors import CapacityError, CheckpointError

from ..checkpoint.expected import expected_tensors
from ..checkpoint.files import CONFIG_FILE, SYNTH_FILE
from ..checkpoint.writer import size_bytes, write_shards
from .configs import (
    CONFIGS,
    DEFAULT_IN_TOKEN_LIMIT,
    IN_TOKEN_LIMITS,
    MEDIA_TOKEN_OFFSET,
    NUM_SPECIAL_TOKENS,
    config_bytes,
)
from .tensors import DTYPES, SyntheticTensors
from .text_files import write_text_files

SPARE_BYTES = 1 << 20
"""Disk space for everything but the tensors."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    config: KimiVLConfig
    config_raw: bytes
    in_token_limit: int
    seed: int
    dtype: str

    @property
    def base_tokens(self) -> int:
        return self.config.decoder.vocab_size - NUM_SPECIAL_TOKENS

    @property
    def tensors(self) -> SyntheticTensors:
        return SyntheticTensors(self.config, self.seed, self.dtype)


def write_synthetic(
    folder: Path,
    *,
    shape: str | Path,
    seed: int = 0,
    dtype: str = "bfloat16",
    lazy: bool | None = None,
) -> Path:
    """Write a checkpoint of random values; the folder appears whole or not at all.

    Args:
        folder: must not exist, or be empty.
        shape: `tiny`, `full`, or the path of a `config.json`.
        seed: the values follow from it and the tensors' names.
        dtype: `bfloat16`, `float16` or `float32`.
        lazy: True writes only the seed, False writes safetensors shards; None writes shards for
            `tiny` and the seed for everything else.

    Returns:
        The folder.

    Raises:
        CheckpointError: the target holds something, or the shape or dtype is not usable.
        CapacityError: the shards do not fit on the disk.
    """
    is_lazy = shape != "tiny" if lazy is None else lazy
    plan = _make_plan(shape, seed, dtype)
    _check_target(folder)
    if not is_lazy:
        _check_disk(folder, plan)
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.mkdir(parents=True)
        _fill(partial, plan, is_lazy=is_lazy)
        partial.replace(folder)
    except OSError as error:
        kind = CapacityError if error.errno in (errno.ENOSPC, errno.EDQUOT) else CheckpointError
        raise kind(f"{folder}: cannot be written: {error}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already when all went well
    return folder


def _make_plan(shape: str | Path, seed: int, dtype: str) -> _Plan:
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if isinstance(shape, str) and shape in CONFIGS:
        raw, limit = config_bytes(shape), IN_TOKEN_LIMITS[shape]
        config = KimiVLConfig.from_fields(CONFIGS[shape], where=shape)
    elif Path(shape).is_file():
        config = KimiVLConfig.load(Path(shape))
        raw, limit = Path(shape).read_bytes(), DEFAULT_IN_TOKEN_LIMIT
    else:
        known = ", ".join(CONFIGS)
        raise CheckpointError(f"shape {str(shape)!r} is none of {known}, nor a config.json")
    plan = _Plan(config=config, config_raw=raw, in_token_limit=limit, seed=seed, dtype=dtype)
    if config.media_token_id != plan.base_tokens + MEDIA_TOKEN_OFFSET:
        raise CheckpointError(
            f"{shape}: media_placeholder_token_id is {config.media_token_id}, but the tokenizer "
            f"for a vocabulary of {config.decoder.vocab_size} puts the placeholder at "
            f"{plan.base_tokens + MEDIA_TOKEN_OFFSET}"
        )
    return plan


def _check_target(folder: Path) -> None:
    if folder.is_dir():
        if any(folder.iterdir()):
            raise CheckpointError(f"{folder}: not empty; choose another folder or empty it first")
    elif folder.exists() or folder.is_symlink():
        raise CheckpointError(f"{folder}: exists and is not a folder; choose another name")


def _check_disk(folder: Path, plan: _Plan) -> None:
    tensors = plan.tensors
    tensor_bytes = sum(size_bytes(tensors, name) for name in expected_tensors(plan.config))
    needed = tensor_bytes + SPARE_BYTES
    parent = next(path for path in folder.absolute().parents if path.is_dir())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise CapacityError(
            f"{folder}: the shards need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "write a lazy checkpoint, which needs none"
        )


def _fill(folder: Path, plan: _Plan, *, is_lazy: bool) -> None:
    write_text_files(folder, base_tokens=plan.base_tokens, in_token_limit=plan.in_token_limit)
    (folder / CONFIG_FILE).write_bytes(plan.config_raw)
    if is_lazy:
        fields = {"seed": plan.seed, "dtype": plan.dtype}
        (folder / SYNTH_FILE).write_text(json.dumps(fields) + "\n", encoding="utf-8")
    else:
        write_shards(folder, plan.tensors, tuple(expected_tensors(plan.config)))
