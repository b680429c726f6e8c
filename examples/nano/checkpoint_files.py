"""Writes and reads the model as a checkpoint folder with the release's layout and names."""

import json
from pathlib import Path

import torch
from torch import Tensor

from export.checkpoint.expected import expected_tensors
from export.checkpoint.reader import Checkpoint
from export.checkpoint.writer import write_shards
from runtime.config import KimiVLConfig

from .model import NanoModel
from .sizes import IN_TOKEN_LIMIT, NANO_CONFIG
from .vocabulary import write_vocabulary

_BIAS = "e_score_correction_bias"


class _Values:
    """A model's tensors under their release names, in bf16."""

    def __init__(self, model: NanoModel) -> None:
        self._tensors = release_tensors(model)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def write_text(folder: Path) -> None:
    """Write everything but the tensors."""
    write_vocabulary(folder, in_token_limit=IN_TOKEN_LIMIT)
    text = json.dumps(NANO_CONFIG, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def write_tensors(folder: Path, model: NanoModel) -> None:
    """Write the tensors over those that `folder` may hold."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    write_shards(folder, _Values(model), tuple(expected_tensors(model.config)))


def release_tensors(model: NanoModel) -> dict[str, Tensor]:
    """Name a model's tensors as in a release: experts one by one, all in bf16."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        rounded = value.detach().to("cpu", torch.bfloat16)
        head, found, kind = name.partition(".experts.")
        if found:
            for index, expert in enumerate(rounded):
                tensors[f"{head}.experts.{index}.{kind}.weight"] = expert
        else:
            tensors[name] = rounded
    return tensors


def load_model(folder: Path) -> NanoModel:
    """Read a checkpoint folder back into fp32."""
    checkpoint = Checkpoint.open(folder)
    model = NanoModel(checkpoint.config)
    state = {}
    for name in model.state_dict():
        head, found, kind = name.partition(".experts.")
        if found:
            names = [
                f"{head}.experts.{index}.{kind}.weight"
                for index in range(checkpoint.config.decoder.num_experts)
            ]
            state[name] = torch.stack([checkpoint.tensor(one) for one in names]).float()
        else:
            state[name] = checkpoint.tensor(name).float()
    model.load_state_dict(state)
    return model


def nano_config() -> KimiVLConfig:
    """The sizes as the toolkit reads them."""
    return KimiVLConfig.from_fields(NANO_CONFIG, where="nano")
