"""A checkpoint's sizes without its values: config, image rule, headers; without torch.

A checkpoint that has no weights yet can be looked at too. Of a hub id only the small text files are
fetched.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.config import KimiVLConfig
from runtime.errors import CheckpointError, describe_problems
from runtime.prompt.patches import ImageRule

from .expected import Shapes, decoder_layer_prefix, expected_tensors
from .files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, SYNTH_FILE, TEXT_FILES
from .hub import HUB_ID, resolve_folder
from .index import Placement, read_placement


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is known of a checkpoint before a value is read."""

    config: KimiVLConfig
    rule: ImageRule
    layers: tuple[int, ...]
    """Decoder layers that will be read, rising."""
    values: Literal["stored", "seed", "absent"]
    """In safetensors files; made from a seed when they are read; not there yet."""

    @classmethod
    def read(
        cls, source: str, *, revision: str | None = None, layers: Sequence[int] | None = None
    ) -> "Outline":
        """Read a folder or a hub id, and check the headers that are there.

        Args:
            source: a folder, or `owner/name` on the hub.
            revision: branch, tag or commit on the hub.
            layers: the only decoder layers that will be read; None means all.

        Raises:
            CheckpointError: all that is wrong, in one line.
        """
        folder = _find_folder(source, revision)
        config = KimiVLConfig.load(folder / CONFIG_FILE)
        kept = _checked_layers(folder, config, layers)
        rule = ImageRule.load(folder)
        if (folder / SYNTH_FILE).is_file():
            return cls(config=config, rule=rule, layers=kept, values="seed")
        if not any((folder / name).exists() for name in (INDEX_FILE, SINGLE_FILE)):
            return cls(config=config, rule=rule, layers=kept, values="absent")
        _check_headers(folder, _needed_tensors(config, kept))
        return cls(config=config, rule=rule, layers=kept, values="stored")


def _find_folder(source: str, revision: str | None) -> Path:
    """Return the folder, or one with the text files of a hub id."""
    if Path(source).exists() or not HUB_ID.fullmatch(source):
        return resolve_folder(source, revision)
    from huggingface_hub import snapshot_download  # only hub ids need it and its HTTP stack

    try:
        folder = snapshot_download(source, revision=revision, allow_patterns=list(TEXT_FILES))
    except Exception as error:
        # Its HTTP stack differs by version and lets errors of its own through.
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{source}: no such folder, and the hub did not give its config: "
            f"{type(error).__name__}: {reason}"
        ) from error
    return Path(folder)


def _checked_layers(
    folder: Path, config: KimiVLConfig, layers: Sequence[int] | None
) -> tuple[int, ...]:
    present = range(config.decoder.num_layers)
    wrong = sorted(set(layers or ()) - set(present))
    if wrong:
        raise CheckpointError(
            f"{folder}: no decoder layers {wrong}; the model has 0 to {present[-1]}"
        )
    return tuple(present) if layers is None else tuple(sorted(set(layers)))


def _needed_tensors(config: KimiVLConfig, layers: Collection[int]) -> Shapes:
    others = set(range(config.decoder.num_layers)) - set(layers)
    unread = tuple(decoder_layer_prefix(layer) for layer in others)
    return {
        name: shape
        for name, shape in expected_tensors(config).items()
        if not name.startswith(unread)
    }


def _check_headers(folder: Path, needed: Shapes) -> None:
    """Compare the headers with what the config says; `Checkpoint.open` looks at more."""
    problems: list[str] = []
    placement = read_placement(folder, needed, problems)
    if placement is not None:
        problems += _differences(placement, needed)
    if problems:
        raise CheckpointError(describe_problems(str(folder), problems))


def _differences(placement: Placement, needed: Shapes) -> Iterator[str]:
    for name, shape in needed.items():
        shard = placement.shard_of.get(name)
        header = placement.headers.get(shard) if shard is not None else None
        entry = header.entries.get(name) if header is not None else None
        if shard is None or (header is not None and entry is None):
            yield f"{name} is missing"
        elif entry is not None and entry.shape != shape:
            yield f"{name} has shape {list(entry.shape)}, expected {list(shape)}"
