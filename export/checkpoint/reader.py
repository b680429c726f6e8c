"""One checkpoint, opened: config and tensors, from files or made from a seed.

Does not know: what the tensors are used for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from runtime.config import KimiVLConfig
from runtime.errors import CheckpointError
from runtime.files import sha256_of

from ..synthetic.tensors import load_synthetic
from .expected import decoder_layer_prefix, expected_tensors
from .files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, SYNTH_FILE, TEXT_FILES
from .hub import resolve_folder
from .stored import StoredTensors


class TensorSource(Protocol):
    """Where values come from; an unknown name is a KeyError."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that `tensor` will have."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor; nothing is kept."""

    def identity(self) -> dict[str, Any]:
        """Return a JSON-able fingerprint of the values."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint folder whose config and tensors fit together."""

    folder: Path
    config: KimiVLConfig
    names: tuple[str, ...]
    """Tensors that may be read, in release order."""
    source: TensorSource

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        layers: Sequence[int] | None = None,
    ) -> "Checkpoint":
        """Open a folder or a hub id, and check all names, shapes, dtypes and file layouts.

        Args:
            source: a folder, or `owner/name` on the hub (its cache is used).
            revision: branch, tag or commit on the hub.
            layers: the only decoder layers that will be read (None: all); shards that hold
                nothing but other layers may be absent.

        Raises:
            CheckpointError: all that is wrong, in one line.
        """
        folder = resolve_folder(source, revision)
        config = KimiVLConfig.load(folder / CONFIG_FILE)
        expected = expected_tensors(config)
        names = _select_names(folder, config, tuple(expected), layers)
        return cls(
            folder=folder,
            config=config,
            names=names,
            source=_open_source(folder, config, expected, names),
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self.source.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that a tensor is stored in."""
        return self.source.dtype(name)

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor in its stored dtype; the checkpoint keeps nothing of it."""
        return self.source.tensor(name)

    def identity(self) -> dict[str, Any]:
        """Return a cheap JSON-able fingerprint: the hash of the config, and the source's."""
        return {"config_sha256": sha256_of(self.folder / CONFIG_FILE), **self.source.identity()}

    def text_files(self) -> list[Path]:
        """List the config, tokenizer and template files that are there."""
        return [self.folder / name for name in TEXT_FILES if (self.folder / name).is_file()]


def _select_names(
    folder: Path, config: KimiVLConfig, names: tuple[str, ...], layers: Sequence[int] | None
) -> tuple[str, ...]:
    if layers is None:
        return names
    num_layers = config.decoder.num_layers
    wrong = sorted(set(layers) - set(range(num_layers)))
    if wrong:
        raise CheckpointError(
            f"{folder}: no decoder layers {wrong}; the model has 0 to {num_layers - 1}"
        )
    others = set(range(num_layers)) - set(layers)
    unread = tuple(decoder_layer_prefix(layer) for layer in others)
    return tuple(name for name in names if not name.startswith(unread))


def _open_source(
    folder: Path,
    config: KimiVLConfig,
    expected: dict[str, tuple[int, ...]],
    names: tuple[str, ...],
) -> TensorSource:
    if not (folder / SYNTH_FILE).exists():
        return StoredTensors.open(folder, expected, names)
    for name in (INDEX_FILE, SINGLE_FILE):
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder}: holds both {SYNTH_FILE} and {name}; remove the one that is not meant"
            )
    return load_synthetic(folder / SYNTH_FILE, config)
