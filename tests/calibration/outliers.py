"""Nano with outlier channels: the same function, but hard to round.

Some channels behind each norm are 64 times larger, and the weights that read them 64 times smaller.
In exact arithmetic nothing changes; large language models look like this.
"""

import shutil
from pathlib import Path

import torch

from examples.nano.score import HERE
from export.checkpoint.reader import Checkpoint
from export.checkpoint.writer import write_shards

CHANNELS = (3, 40, 77, 101)
FACTOR = 64.0
_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.kv_a_proj_with_mqa"),
    "post_attention_layernorm": ("mlp.",),
}


class _Planted:
    """The tensors of a checkpoint with the channels scaled; satisfies `writer.Values`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._checkpoint.tensor(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._checkpoint.tensor(name).dtype

    def tensor(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.tensor(name).clone()
        if ".layers." not in name:
            return tensor
        inner = name.partition(".layers.")[2].partition(".")[2]
        for norm, readers in _READERS.items():
            if inner == f"{norm}.weight":
                tensor[list(CHANNELS)] *= FACTOR
            elif inner.startswith(readers) and "down_proj" not in inner and tensor.dim() == 2:
                tensor[:, list(CHANNELS)] /= FACTOR
        return tensor


def write_planted(folder: Path) -> Path:
    """Write the changed checkpoint into `folder`."""
    source = Checkpoint.open(HERE / "checkpoint")
    folder.mkdir()
    for path in (HERE / "checkpoint").iterdir():
        if "safetensors" not in path.name:
            shutil.copy(path, folder)
    write_shards(folder, _Planted(source), source.names)
    return folder
