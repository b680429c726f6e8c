"""Each mistake that ports of this model have made, planted in our modules, is seen.

The comparison is the one of the other parity tests (largest difference to transformers, relative to
the largest value), on the torch modules that the graphs are traced from. A planted mistake must be
at least ten times over the bound that the right module keeps. What no comparison of outputs shows
(the kind of GELU, the epsilon of a norm) has unit tests in `test_small_parts.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.parity import relative_error
from calibration.tolerances import GRAPH_FP32
from export.checkpoint.reader import Checkpoint
from export.graphs import plan_graphs
from export.modules import decoder as decoder_module
from export.modules import ops, rope
from export.modules import vision as vision_module
from export.sources import load_parameters, parameter_sources
from export.synthetic.folder import write_synthetic
from runtime.prompt.patches import PatchedImage, position_weights
from tests.oracles import model as oracles

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]
GRIDS = ((4, 6), (10, 2), (12, 14))


class Subject:
    """Our modules and the oracle on one checkpoint, run on the same inputs."""

    def __init__(self, root: Path) -> None:
        self.folder = write_synthetic(root / "tiny", shape="tiny", seed=3, dtype="float32")
        self.checkpoint = Checkpoint.open(self.folder)
        self.config = self.checkpoint.config
        self.oracle = oracles.load_whole(self.folder, root)
        torch.manual_seed(0)
        self.images = [
            PatchedImage(patches=torch.randn(h, w, 588).clamp(-1, 1).numpy()) for h, w in GRIDS
        ]
        self.ids = torch.randint(0, self.config.decoder.vocab_size - 256, (1, 23))

    def modules(self) -> dict[str, nn.Module]:
        """Build and fill all modules; anew each time, so that planted classes are used."""
        config = self.config
        layers = range(config.decoder.num_layers)
        filled = {}
        for plan in plan_graphs(config, torch.float32, list(layers), taps=False):
            module = plan.build()
            load_parameters(module, parameter_sources(module, plan.prefix, self.checkpoint))
            filled[plan.name] = module.eval()
        return filled

    def vision_error(self, images: list[PatchedImage] | None = None) -> float:
        """Image features against the oracle's; `images` replaces what our tower is given."""
        modules = self.modules()
        with torch.no_grad():
            ours = [
                modules["projector"](modules["vision"](*self.tower_inputs(image)))
                for image in images or self.images
            ]
            patches = [torch.from_numpy(i.patches).reshape(-1, 3, 14, 14) for i in self.images]
            grids = torch.tensor([(1, *image.grid) for image in self.images])
            model = self.oracle.model
            encoded = model.vision_tower(torch.cat(patches), grid_thw=grids)
            expected = model.mm_projector(encoded.pooler_output)
        found = torch.cat(ours)
        return relative_error(found.numpy(), expected.reshape(found.shape).numpy())

    def tower_inputs(self, image: PatchedImage) -> list[Tensor]:
        side = self.config.vision.table_height
        weights = [position_weights(size, side) for size in image.grid]
        return [torch.from_numpy(array) for array in (image.patches, *weights)]

    def decoder_error(self) -> float:
        """Logits of a text against the oracle's."""
        modules, config = self.modules(), self.config.decoder
        with torch.no_grad():
            expected = self.oracle(input_ids=self.ids).logits
            hidden = self.oracle.get_input_embeddings()(self.ids)
            cache = torch.zeros(1, 1, self.ids.shape[1], config.latent_width)
            for layer in range(config.num_layers):
                module = modules[f"layer_{layer:02d}"]
                hidden = module(hidden, cache, torch.tensor([0]))[0]
            found = modules["head"](hidden, torch.arange(self.ids.shape[1]))
        return relative_error(found.numpy(), expected[0].numpy())


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("mistakes"))


def attribute(owner: Any, name: str, wrong: Any) -> Plant:  # noqa: ANN401  # any attribute
    return lambda patch: patch.setattr(owner, name, wrong)


def angles_with(combine: Callable[[Tensor, Tensor], Tensor]) -> Plant:
    """Replace how the column and row angles (h, w, D / 4) become those of all pairs."""

    def wrong(height: int, width: int, frequencies: Tensor) -> Tensor:
        shape = (height, width, len(frequencies))
        columns = (torch.arange(width)[:, None] * frequencies)[None].expand(shape)
        rows = (torch.arange(height)[:, None] * frequencies)[:, None].expand(shape)
        return combine(columns, rows).reshape(1, height * width, -1)

    return attribute(vision_module, "grid_angles", wrong)


def half_split(x: Tensor, angles: Tensor, *, num_heads: int) -> Tensor:
    """Rotate channel i with channel i + D / 2."""
    batch, tokens, _ = x.shape
    first, second = x.reshape(batch, tokens, num_heads, -1).chunk(2, dim=-1)
    cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.reshape(x.shape)


def resampled(**options: Any) -> Plant:  # noqa: ANN401  # options of interpolate
    """Resample the position table in another way."""

    def wrong(self: nn.Module, row_weights: Tensor, column_weights: Tensor) -> Tensor:
        table = self.weight.permute(2, 0, 1)[None]  # type: ignore[operator]
        size = (len(row_weights), len(column_weights))
        return F.interpolate(table, size=size, **options)[0].permute(1, 2, 0)

    return attribute(vision_module.PositionTable, "forward", wrong)


def transposed_cells(patch: Patch) -> None:
    right = vision_module.VisionTower.forward

    def wrong(self: Any, *inputs: Tensor) -> Tensor:  # noqa: ANN401  # a module
        return right(self, *inputs)[:, [0, 2, 1, 3]]

    patch.setattr(vision_module.VisionTower, "forward", wrong)


def projector_with(*, norm: bool = True, gelu: Callable[[Tensor], Tensor] = F.gelu) -> Plant:
    def wrong(self: Any, merged: Tensor) -> Tensor:  # noqa: ANN401  # a module
        x = self.pre_norm(merged) if norm else merged
        wrong_result: Tensor = self.linear_2(gelu(self.linear_1(x.reshape(len(x), -1))))
        return wrong_result

    return attribute(vision_module.Projector, "forward", wrong)


VISION_MISTAKES: dict[str, Plant] = {
    "x and y swapped": angles_with(lambda x, y: torch.stack([y, x], dim=-1)),
    "all x pairs, then all y pairs": angles_with(lambda x, y: torch.cat([x, y], dim=-1)),
    "half-split pairs": attribute(vision_module, "rotate_pairs", half_split),
    "no rotation": attribute(vision_module, "rotate_pairs", lambda x, _a, num_heads: x),
    "bilinear table": resampled(mode="bilinear"),
    "antialiased table": resampled(mode="bicubic", antialias=True),
    "table with aligned corners": resampled(mode="bicubic", align_corners=True),
    "cells read down, then across": transposed_cells,
    "no norm before the projector": projector_with(norm=False),
    "quick GELU in the projector": projector_with(gelu=lambda x: x * torch.sigmoid(1.702 * x)),
}


def router_with(
    *,
    choose_by: Callable[[Tensor, Tensor], Tensor] = lambda plain, bias: plain + bias,
    weigh_by: Callable[[Tensor, Tensor], Tensor] = lambda plain, bias: plain,
    activate: Callable[[Tensor], Tensor] = torch.sigmoid,
    normalized: bool = True,
    scaled: bool = True,
) -> Plant:
    def wrong(
        hidden: Tensor, weight: Tensor, bias: Tensor, *, k: int, scale: float, normalize: bool
    ) -> tuple[Tensor, Tensor]:
        plain = activate(hidden @ weight)
        experts = choose_by(plain, bias).topk(k, dim=-1).indices
        scores = weigh_by(plain, bias).gather(1, experts)
        if normalized:
            scores = scores / scores.sum(-1, keepdim=True)
        return experts, scores * (scale if scaled else 1.0)

    return attribute(decoder_module, "route", wrong)


def theta_50000(patch: Patch) -> None:
    right = rope.inverse_frequencies
    patch.setattr(decoder_module, "inverse_frequencies", lambda size, _theta: right(size, 50000.0))


def scale_of_the_plain_part(patch: Patch) -> None:
    right = ops.latent_attention

    def wrong(query: Tensor, cache: Tensor, lengths: Tensor, *, rank: int, scale: float) -> Tensor:
        return right(query, cache, lengths, rank=rank, scale=24**-0.5)

    patch.setattr(decoder_module, "latent_attention", wrong)


def no_shared_experts(patch: Patch) -> None:
    def wrong(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401  # a module
        both, experts, scores = right(self, x)
        return both - self.shared_experts(x), experts, scores

    right = decoder_module.MoE.forward
    patch.setattr(decoder_module.MoE, "forward", wrong)


def no_latent_norm(patch: Patch) -> None:
    def wrong(self: Any, x: Tensor, angles: Tensor) -> Tensor:  # noqa: ANN401  # a module
        self.kv_a_layernorm = nn.Identity()
        return right(self, x, angles)

    right = decoder_module.Attention.cache_rows
    patch.setattr(decoder_module.Attention, "cache_rows", wrong)


DECODER_MISTAKES: dict[str, Plant] = {
    "half-split pairs": attribute(decoder_module, "rotate_pairs", half_split),
    "theta 50000": theta_50000,
    "scale of the plain part only": scale_of_the_plain_part,
    "no correction bias": router_with(choose_by=lambda plain, bias: plain),
    "biased weights": router_with(weigh_by=lambda plain, bias: plain + bias),
    "softmax scoring": router_with(activate=lambda x: x.softmax(-1)),
    "no routed scale": router_with(scaled=False),
    "no normalisation": router_with(normalized=False),
    "no shared experts": no_shared_experts,
    "no norm on the latent": no_latent_norm,
}


def test_the_right_modules_keep_the_bound(subject: Subject) -> None:
    assert subject.vision_error() <= GRAPH_FP32
    assert subject.decoder_error() <= GRAPH_FP32


def test_the_planted_router_is_right_without_a_mistake(
    subject: Subject, monkeypatch: Patch
) -> None:
    router_with()(monkeypatch)
    assert subject.decoder_error() <= GRAPH_FP32


@pytest.mark.parametrize("plant", VISION_MISTAKES.values(), ids=VISION_MISTAKES)
def test_a_mistake_in_the_vision_tower_is_seen(
    subject: Subject, monkeypatch: Patch, plant: Plant
) -> None:
    plant(monkeypatch)
    assert subject.vision_error() > 10 * GRAPH_FP32


@pytest.mark.parametrize("plant", DECODER_MISTAKES.values(), ids=DECODER_MISTAKES)
def test_a_mistake_in_the_decoder_is_seen(
    subject: Subject, monkeypatch: Patch, plant: Plant
) -> None:
    plant(monkeypatch)
    assert subject.decoder_error() > 10 * GRAPH_FP32


def test_attention_across_images_is_seen(subject: Subject) -> None:
    """Two images of one width, encoded as one tall image: positions and attention run across."""
    twins = [replace(subject.images[0]), replace(subject.images[0])]
    tall = PatchedImage(patches=np.concatenate([twin.patches for twin in twins]))
    modules = subject.modules()
    with torch.no_grad():
        apart = [modules["vision"](*subject.tower_inputs(twin)) for twin in twins]
        joined = modules["vision"](*subject.tower_inputs(tall))
    error = relative_error(joined.numpy(), torch.cat(apart).numpy())
    assert error > 10 * GRAPH_FP32
