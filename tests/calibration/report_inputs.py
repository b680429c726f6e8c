"""A calibration that never ran: findings of any size, and samples whose tokens are words."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture

from calibration.data.examples import Example
from calibration.data.samples import Sample
from calibration.price.distance import Reference
from calibration.price.gate import GateLimits
from calibration.report.page import write_report
from export.recipe.reading import load_recipe
from runtime import names
from runtime.prompt.messages import Image, Message, Part, Text

WORDS = ("zero ", "one ", "two ", "three ", "four ", "five ", "<b>six</b> & ", "\n", "")
ROUGH = 0.31
"""The error behind the last layer."""
MATRICES = {
    names.VISION: ("encoder.blocks.0.wqkv.weight", "encoder.blocks.1.mlp.fc0.weight"),
    names.PROJECTOR: ("linear_1.weight", "linear_2.weight"),
    names.HEAD: ("lm_head.weight",),
}
DENSE = ("self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.up_proj.weight")
SPARSE = (
    *DENSE[:2],
    "mlp.experts.gate_proj",
    "mlp.experts.up_proj",
    "mlp.shared_experts.up_proj.weight",
)


def decode(ids: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in ids)


@dataclass(frozen=True, kw_only=True)
class Told:
    """One held-out sample: its reply, and what is chosen in place of it."""

    question: str
    reply: tuple[int, ...]
    kl: float
    fp32: tuple[int, ...] | None = None
    """None: the reply."""
    differs: tuple[tuple[int, int], ...] = ()
    picture: Path | None = None

    @property
    def chosen(self) -> tuple[int, ...]:
        return self.fp32 or self.reply

    def sample(self) -> Sample:
        ids = np.array([0, 0, *self.reply])
        judged = np.arange(1, len(ids) - 1)
        is_image = np.zeros(len(ids), dtype=bool)
        return Sample(ids=ids, is_image=is_image, images=(), judged=judged, has_reply=True)

    def example(self) -> Example:
        pictures: list[Part] = [Image(source=self.picture)] if self.picture else []
        message = Message(role="user", parts=(*pictures, Text(text=self.question)))
        return Example(messages=(message,), answer="", reply=decode(self.reply), kind="all")


def layer_names(num_layers: int) -> list[str]:
    return [names.layer_name(layer) for layer in range(num_layers)]


def draw_tokens(num_experts: int, mean: int, seed: int) -> list[int]:
    """Tokens of experts as routers spread them: some get many, few hardly any."""
    draw = random.Random(seed)
    return [int(mean * draw.lognormvariate(0, 1.1)) for _ in range(num_experts)]


def make_quality(
    told: Sequence[Told], *, num_layers: int = 3, num_experts: int = 8, tokens: int = 400
) -> dict[str, Any]:
    """Findings for the recipe nvfp4; the first layer has no experts."""
    layers = layer_names(num_layers)
    graphs: dict[str, Any] = {names.EMBEDDING: {"recipes": {}, "strayed": {"nvfp4": True}}}
    for place, graph in enumerate([names.VISION, names.PROJECTOR, *layers]):
        found: dict[str, Any] = {"is_finite": True, "error": ROUGH * (place + 1) / (num_layers + 2)}
        observed: dict[str, Any] = {"ports": {}}
        matrices = MATRICES.get(graph, SPARSE if graph in layers[1:] else DENSE)
        if graph in layers[1:]:
            text, image = (draw_tokens(num_experts, tokens, 2 * place + kind) for kind in (0, 1))
            observed["experts"] = {"text": text, "image": image, "rare": 0}
            agreement = 1 - found["error"] / 2
            found["experts"] = {
                "agreement": agreement, "flipped_tokens": 40 * place, "flip_margin": 0.0123
            }  # fmt: skip
        found["weights"] = {name: 0.09 + 0.001 * i for i, name in enumerate(matrices)}
        graphs[graph] = {"observed": observed, "recipes": {"nvfp4": found}}
    price = make_price(told)
    head = {"is_finite": True, "weights": {"lm_head.weight": 0.0264}, "price": price}
    graphs[names.HEAD] = {"observed": {"ports": {}}, "recipes": {"nvfp4": head}}
    return {
        "checkpoint": "some-checkpoint", "recipe": "nvfp4", "precision": {}, "graphs": graphs
    }  # fmt: skip


def make_price(told: Sequence[Told]) -> dict[str, Any]:
    samples = [{"kl": one.kl, "differs": [list(pair) for pair in one.differs]} for one in told]
    return {
        "kl_mean": 0.0234567,
        "kl_p99": 0.456789,
        "top1": 0.987654,
        "positions": sum(len(one.reply) for one in told),
        "exact_match": 0.875,
        "exact_match_reference": 0.8891,
        "samples": samples,
    }


def make_told(folder: Path, count: int = 16) -> list[Told]:
    """Samples with a picture each; every third one changes its second token."""
    told = []
    for index in range(count):
        path = folder / f"{index}.png"
        colour = (200, 20 * index % 256, 90)
        Picture.new("RGB", (300 + 40 * index, 200), colour).save(path)
        told.append(
            Told(
                question=f"What is in picture {index}?",
                reply=(1, 2, 3),
                kl=0.1 / (index + 1),
                differs=((1, 4),) if index % 3 == 0 else (),
                picture=path,
            )
        )
    return told


def write(path: Path, told: Sequence[Told], quality: dict[str, Any], **other: Any) -> str:  # noqa: ANN401
    """Write the report of a calibration and return the page."""
    chosen = [token for one in told for token in one.chosen]
    logs = torch.zeros(len(chosen), 1)
    recipe = other.pop("recipe", load_recipe("nvfp4"))
    values: dict[str, Any] = {
        "recipe": recipe,
        "samples": [one.sample() for one in told],
        "examples": [one.example() for one in told],
        "reference": Reference(tokens=torch.tensor(chosen)[:, None], logs=logs),
        "decode": decode,
        "gate": GateLimits().record(recipe),
        "problems": [],
    }
    write_report(path, quality, **(values | other))
    return path.read_text(encoding="utf-8")


def budget_of(name: str) -> dict[str, Any]:
    return asdict(load_recipe(name).budget)
