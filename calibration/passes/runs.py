"""How one sample goes through each kind of graph, as a torch module."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.modules.decoder import Taps
from runtime import names
from runtime.config import KimiVLConfig
from runtime.prompt.patches import PatchedImage, position_weights

from ..data.samples import Sample


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What runs through the model: first what is observed, then what is judged."""

    observed: Sequence[Sample]
    held_out: Sequence[Sample]
    turns: Sequence[Sample] = ()
    """Judged besides, turn by turn; the price is that of `held_out` alone."""

    @property
    def all(self) -> list[Sample]:
        """All, in order."""
        return [*self.observed, *self.held_out, *self.turns]

    @property
    def images(self) -> list[PatchedImage]:
        """All images, in order."""
        return [image for sample in self.all for image in sample.images]

    def first_held_out(self, graph: str) -> int:
        """Number of the first item that is judged: an image for the tower, a sample elsewhere."""
        if graph in (names.VISION, names.PROJECTOR):
            return sum(len(sample.images) for sample in self.observed)
        return len(self.observed)

    def counts(self, graph: str) -> list[int]:
        """Rows of each item behind a graph."""
        if graph in (names.VISION, names.PROJECTOR):
            return [image.num_tokens for image in self.images]
        if graph == names.HEAD:
            return [len(sample.judged) for sample in self.all]
        return [len(sample.ids) for sample in self.all]


def tail_shape(graph: str, config: KimiVLConfig) -> tuple[int, ...]:
    """Shape of one row behind a graph."""
    if graph == names.VISION:
        return (4, config.vision.width)
    return (config.decoder.vocab_size if graph == names.HEAD else config.decoder.width,)


@torch.no_grad()
def run_vision(tower: nn.Module, image: PatchedImage, config: KimiVLConfig) -> Tensor:
    """One image through the tower: (M, 4, C)."""
    rows, columns = config.vision.table_height, config.vision.table_width
    merged: Tensor = tower(
        torch.from_numpy(image.patches),
        torch.from_numpy(position_weights(image.grid.h, rows)),
        torch.from_numpy(position_weights(image.grid.w, columns)),
    )
    return merged


@torch.no_grad()
def run_layer(layer: nn.Module, hidden: Tensor, config: KimiVLConfig) -> tuple[Tensor, Taps | None]:
    """One sample (S, C) through a decoder layer, with a cache of its own length."""
    cache = torch.zeros(1, 1, len(hidden), config.decoder.latent_width)
    out, _, *taps = layer(hidden[None], cache, torch.zeros(1, dtype=torch.int64))
    return out[0], Taps(*taps) if taps else None


@torch.no_grad()
def run_head(head: nn.Module, hidden: Tensor, judged: Tensor) -> Tensor:
    """Logits (N, V) of the judged positions of one sample (S, C)."""
    logits: Tensor = head(hidden[None], judged)
    return logits


@torch.no_grad()
def embed(sample: Sample, rows: Callable[[Tensor], Tensor], features: Sequence[Tensor]) -> Tensor:
    """Token rows with image rows in their places: (S, C); `rows` looks ids up."""
    hidden = rows(torch.from_numpy(sample.ids))
    if features:
        hidden[torch.from_numpy(sample.is_image)] = torch.cat(list(features))
    return hidden
