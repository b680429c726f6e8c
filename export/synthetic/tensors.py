"""Random tensors computed when they are read, from a seed and their name alone.

The values are wide on purpose: weights drawn like those of a fresh model make nearly every
mistake in layout, rotation or routing disappear in rounding. Here each norm, bias and table is
far from neutral, and matrices keep the size of what passes through them at any width.

Does not know: the checkpoint folder. Equal values need the same release of torch.
"""

import hashlib
from math import prod, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch

from runtime.config import KimiVLConfig
from runtime.errors import CheckpointError, describe_problems

from ..checkpoint.expected import expected_tensors
from ..checkpoint.files import object_from_json

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
RULE = 1
"""Counts changes of how values are made; part of the identity."""
LINEAR_GAIN = 1.25
CORRECTION_BIAS = "e_score_correction_bias"


class Spread(NamedTuple):
    """Of a normal distribution."""

    mean: float
    std: float


class SyntheticTensors:
    """All tensors of a config; nothing is stored."""

    def __init__(self, config: KimiVLConfig, seed: int, dtype: str) -> None:
        """Choose the values.

        Args:
            config: gives names and shapes.
            seed: any integer.
            dtype: a name of `DTYPES`; the router's correction bias is float32 always.
        """
        self._shapes = expected_tensors(config)
        self._seed = seed
        self._dtype_name = dtype
        self._dtype = DTYPES[dtype]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype."""
        if name not in self._shapes:
            raise KeyError(name)
        return torch.float32 if name.endswith(CORRECTION_BIAS) else self._dtype

    def tensor(self, name: str) -> torch.Tensor:
        """Draw one tensor in float32 and cast it; equal at every call."""
        shape = self._shapes[name]
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        mean, std = spread_of(name, shape)
        values = torch.empty(shape, dtype=torch.float32).normal_(mean, std, generator=generator)
        return values.to(self.dtype(name))

    def identity(self) -> dict[str, Any]:
        """Return what the values follow from."""
        return {
            "kind": "synthetic",
            "seed": self._seed,
            "dtype": self._dtype_name,
            "rule": RULE,
        }


def spread_of(name: str, shape: tuple[int, ...]) -> Spread:
    """Choose how widely a tensor's values are spread, so that activations stay near size 1."""
    if name.endswith(CORRECTION_BIAS):
        return Spread(0.0, 0.3)
    if name.endswith(".bias"):
        return Spread(0.0, 0.2)
    if len(shape) == 1:  # the other vectors are weights of norms
        return Spread(1.0, 0.3)
    if name.endswith(("embed_tokens.weight", "pos_emb.weight")):
        return Spread(0.0, 1.0)
    fan_in = prod(shape[1:])
    if name.endswith("patch_embed.proj.weight"):
        return Spread(0.0, 1.0 / sqrt(fan_in))
    if name.endswith("mlp.gate.weight"):  # the router: scores must differ clearly
        return Spread(0.0, 2.0 / sqrt(fan_in))
    return Spread(0.0, LINEAR_GAIN / sqrt(fan_in))


def load_synthetic(path: Path, config: KimiVLConfig) -> SyntheticTensors:
    """Read a `synth.json`: exactly a seed and a dtype.

    Raises:
        CheckpointError: the file says anything else.
    """
    try:
        fields = object_from_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not usable: {error}") from error
    seed, dtype = fields.pop("seed", None), fields.pop("dtype", None)
    problems = [f"{name}: unknown field" for name in fields]
    if type(seed) is not int:
        problems.append(f"seed: expected an integer, found {seed!r}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        problems.append(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    if problems:
        raise CheckpointError(describe_problems(str(path), problems))
    return SyntheticTensors(config, seed, dtype)
