"""How far one next-token distribution is from another, judged by a reference's likeliest tokens.

Of the reference only the likeliest 64 tokens of each position are kept; all others count as one.
So a reference is small enough to keep in an artifact, and every target is judged by the same
figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from runtime.files import write_bytes

from ..digits import six_digits

KEPT = 64
STABLE_GAP = 0.1
"""In nats: at a smaller gap between the first and the second token, the first is a coin toss."""
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The judged positions of all held-out samples, in order."""

    tokens: Tensor
    """(N, 64) int64, likeliest first."""
    logs: Tensor
    """(N, 64) fp32, natural logarithms of their probabilities."""

    @classmethod
    def of(cls, logits: Tensor) -> "Reference":
        """Keep what is needed of logits (N, V)."""
        logs = logits.float().log_softmax(dim=-1)
        kept, tokens = logs.topk(min(KEPT, logs.shape[-1]), dim=-1)
        return cls(tokens=tokens, logs=kept)

    @classmethod
    def join(cls, parts: list["Reference"]) -> "Reference":
        """Put positions one behind the other."""
        return cls(
            tokens=torch.cat([part.tokens for part in parts]),
            logs=torch.cat([part.logs for part in parts]),
        )

    def part(self, start: int, end: int) -> "Reference":
        """Some of the positions."""
        return Reference(tokens=self.tokens[start:end], logs=self.logs[start:end])

    def save(self, path: Path) -> None:
        """Write the file."""
        write_bytes(path, save({"tokens": self.tokens.int(), "logs": self.logs.contiguous()}))

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what `save` wrote."""
        tensors = load_file(path)
        return cls(tokens=tensors["tokens"].long(), logs=tensors["logs"])


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Judged positions, one number each."""

    kl: Tensor
    """(N,) fp64, nats."""
    agrees: Tensor
    """(N,) bool: the likeliest token is the same."""
    is_stable: Tensor
    """(N,) bool: the reference was sure of its first token."""
    chosen: Tensor
    """(N,) int64: the likeliest token."""

    @classmethod
    def between(cls, reference: Reference, logits: Tensor) -> "Distance":
        """Compare logits (N, V) with the reference's positions (N,)."""
        logs = logits.float().log_softmax(dim=-1).gather(1, reference.tokens).double()
        wanted = reference.logs.double()
        shares = torch.cat([wanted.exp(), _rest(wanted)], dim=1)
        others = torch.cat([logs.exp(), _rest(logs)], dim=1)
        chosen = logits.argmax(dim=-1)
        terms = shares * (shares.clamp_min(_TINY).log() - others.clamp_min(_TINY).log())
        return cls(
            kl=terms.sum(dim=1).clamp_min(0.0),
            agrees=chosen == reference.tokens[:, 0],
            is_stable=wanted[:, 0] - wanted[:, 1] >= STABLE_GAP,
            chosen=chosen,
        )

    @classmethod
    def join(cls, parts: list["Distance"]) -> "Distance":
        """Put positions one behind the other."""
        return cls(
            kl=torch.cat([part.kl for part in parts]),
            agrees=torch.cat([part.agrees for part in parts]),
            is_stable=torch.cat([part.is_stable for part in parts]),
            chosen=torch.cat([part.chosen for part in parts]),
        )

    def figures(self) -> Mapping[str, float]:
        """Sum up: `kl_mean`, `kl_p99`, `top1` (agreement on stable positions), `positions`."""
        stable = self.agrees[self.is_stable]
        return {
            "kl_mean": six_digits(float(self.kl.mean())),
            "kl_p99": six_digits(float(np.quantile(self.kl.numpy(), 0.99))),
            "top1": six_digits(float(stable.double().mean())) if len(stable) else 1.0,
            "positions": len(self.kl),
        }


def _rest(logs: Tensor) -> Tensor:
    return (1.0 - logs.exp().sum(dim=1, keepdim=True)).clamp_min(0.0)
