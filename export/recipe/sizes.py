"""What a model takes in a recipe: bytes of codes and scales, and what one generated token reads.

Arithmetic on the config. Does not know: torch, files, scales that are not there yet.

What is counted is what the export writes, but for the gaps between tensors: they begin at multiples
of 64 bytes, large ones at pages (`export.graph.weights_file`).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Literal

from runtime import names
from runtime.config import DecoderConfig, KimiVLConfig

from ..checkpoint.expected import expected_tensors
from .recipe import PARTS, ActivationFormat, Part, PartRecipe, Recipe, WeightFormat

PartName = Part | Literal["embedding", "other"]
PART_NAMES: tuple[PartName, ...] = (*PARTS, "embedding", "other")
"""Parts of a recipe; the embedding table; and `other`: patch embedding, position table, norms,
biases, router."""

BASE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}

_PARTS_BY_NAME: tuple[tuple[str, PartName], ...] = (
    (".encoder.blocks.", "vision"),
    ("multi_modal_projector.linear_", "projector"),
    (".self_attn.kv_b_proj.", "kv_b"),
    (".self_attn.", "attention"),
    (".mlp.gate.", "other"),
    (".mlp.experts.", "experts"),
    (".mlp.shared_experts.", "shared_experts"),
    (".mlp.", "dense_mlp"),
    (".lm_head.", "head"),
    (".embed_tokens.", "embedding"),
)
"""Of matrices; the first fragment that a name contains decides."""

_READS_WITH_ANOTHER = (".up_proj", ".kv_a_proj_with_mqa")
"""Matrices that read the same values as one before them, which keeps the scale of both."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a graph."""

    name: str
    """The checkpoint's name; of stacked experts and of the halves of `kv_b_proj` the module's."""
    graph: str
    part: PartName
    shape: tuple[int, ...]
    """(..., K, N) of a matrix with K inputs and N outputs; else the checkpoint's."""
    read: Fraction
    """The share that one generated token reads."""

    @property
    def count(self) -> int:
        """Numbers in it."""
        return prod(self.shape)

    @property
    def inputs(self) -> int:
        """K."""
        return self.shape[-2]

    @property
    def outputs(self) -> int:
        """N of all matrices of a stack."""
        return self.count // self.inputs

    @property
    def is_router(self) -> bool:
        """Whether it is fp32 in every recipe."""
        return ".mlp.gate." in self.name


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """What a parameter takes."""

    codes: int
    """Values as they are stored, quantised or not."""
    scales: int
    """Scales of codes and of what meets them."""


@dataclass(frozen=True, kw_only=True)
class PartSize:
    """One part of the model in a recipe."""

    part: str
    format: str
    parameters: int
    code_bytes: int
    scale_bytes: int
    active_parameters: int
    """Numbers that one generated token reads."""
    active_bytes: int
    """The same in bytes, codes and scales."""

    @property
    def stored_bytes(self) -> int:
        """Codes and scales."""
        return self.code_bytes + self.scale_bytes


def parameters(config: KimiVLConfig, layers: Collection[int] | None = None) -> list[Parameter]:
    """List what the graphs and the embedding table hold.

    Args:
        config: sizes of the model.
        layers: decoder layers to keep; None means all.
    """
    return list(_parameters(config, layers))


def recipe_of(parameter: Parameter, recipe: Recipe) -> PartRecipe | None:
    """Look up how a parameter is quantised; None means that it stays in the base type."""
    return next((part for name, part in recipe.parts.items() if name == parameter.part), None)


def stored_bytes(parameter: Parameter, recipe: Recipe) -> Bytes:
    """Count what the export writes for a parameter."""
    base = BASE_BYTES[recipe.base]
    if parameter.part == "embedding" and recipe.embedding is not None:
        return Bytes(codes=parameter.count, scales=4 * parameter.shape[0])
    part = recipe_of(parameter, recipe)
    if part is None:
        item = BASE_BYTES["fp32"] if parameter.is_router else base
        return Bytes(codes=parameter.count * item, scales=0)
    codes = -(-parameter.count * part.weights.bits // 8)
    scales = _weight_scales(parameter, part.weights, base)
    if part.activations is not None:
        scales += _input_scale(parameter, part.activations, base)
    return Bytes(codes=codes, scales=scales)


def graph_bytes(found: Sequence[Parameter], recipe: Recipe) -> dict[str, int]:
    """Give the bytes of each graph's weights and of the embedding table, by name."""
    sizes: dict[str, int] = {}
    for parameter in found:
        one = stored_bytes(parameter, recipe)
        sizes[parameter.graph] = sizes.get(parameter.graph, 0) + one.codes + one.scales
    return sizes


def part_sizes(found: Sequence[Parameter], recipe: Recipe) -> list[PartSize]:
    """Sum up by part, in the order of `PART_NAMES`; parts that the model lacks are left out."""
    sizes = []
    for part in PART_NAMES:
        members = [parameter for parameter in found if parameter.part == part]
        if members:
            sizes.append(_sum_up(part, _format(part, recipe), members, recipe))
    return sizes


def total_size(found: Sequence[Parameter], recipe: Recipe) -> PartSize:
    """Sum up the whole model."""
    return _sum_up("total", "", found, recipe)


def _sum_up(part: str, form: str, members: Sequence[Parameter], recipe: Recipe) -> PartSize:
    taken = [(member, stored_bytes(member, recipe)) for member in members]
    return PartSize(
        part=part,
        format=form,
        parameters=sum(member.count for member, _ in taken),
        code_bytes=sum(one.codes for _, one in taken),
        scale_bytes=sum(one.scales for _, one in taken),
        active_parameters=int(sum(member.count * member.read for member, _ in taken)),
        active_bytes=int(sum((one.codes + one.scales) * member.read for member, one in taken)),
    )


def _format(part: PartName, recipe: Recipe) -> str:
    if part == "other":
        return f"{recipe.base}, router fp32" if recipe.base != "fp32" else "fp32"
    return recipe.embedding or recipe.base if part == "embedding" else recipe.text(part)


def _weight_scales(parameter: Parameter, form: WeightFormat, base: int) -> int:
    groups = parameter.inputs // form.group if form.group else 1
    count = groups * parameter.outputs
    return count + 4 if form.codes == "nvfp4" else count * base  # FP8 and one fp32 number


def _input_scale(parameter: Parameter, form: ActivationFormat, base: int) -> int:
    """Bytes of the scale of what meets a parameter; none if another one keeps it."""
    name = parameter.name.removesuffix(".weight")
    if parameter.part == "kv_b" or name.endswith(_READS_WITH_ANOTHER):
        return 0
    if form.codes == "nvfp4":
        return 4
    return 0 if form.scale == "dynamic" else base


def _parameters(config: KimiVLConfig, layers: Collection[int] | None) -> Iterator[Parameter]:
    decoder = config.decoder
    wanted = range(decoder.num_layers) if layers is None else layers
    graphs = {names.VISION, names.PROJECTOR, names.HEAD, names.EMBEDDING}
    graphs |= {names.layer_name(layer) for layer in wanted}
    for name, shape in expected_tensors(config).items():
        graph = _graph_of(name)
        if graph not in graphs or (".mlp.experts." in name and ".mlp.experts.0." not in name):
            continue
        part = _part_of(name, shape)
        for stored, turned in _stored_forms(name, shape, part, decoder):
            yield Parameter(
                name=stored, graph=graph, part=part, shape=turned, read=_read(graph, part, decoder)
            )


def _graph_of(name: str) -> str:
    first, _, rest = name.partition(".")
    if first == "vision_tower":
        return names.VISION
    if first == "multi_modal_projector":
        return names.PROJECTOR
    words = rest.split(".")
    if words[1] == "layers":
        return names.layer_name(int(words[2]))
    return names.EMBEDDING if words[1] == "embed_tokens" else names.HEAD


def _part_of(name: str, shape: tuple[int, ...]) -> PartName:
    if len(shape) != 2:
        return "other"
    return next((part for fragment, part in _PARTS_BY_NAME if fragment in name), "other")


def _stored_forms(
    name: str, shape: tuple[int, ...], part: PartName, config: DecoderConfig
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape in the graph of what is (out, in) in the checkpoint."""
    stem = name.removesuffix(".weight")
    heads, nope, rank = config.num_heads, config.nope_size, config.latent_rank
    if part == "kv_b":
        yield f"{stem}.key", (heads, nope, rank)
        yield f"{stem}.value", (heads, rank, config.value_size)
    elif part == "experts":
        yield stem.replace(".experts.0.", ".experts."), (config.num_experts, shape[1], shape[0])
    elif part in ("other", "embedding"):
        yield name, shape
    else:
        yield name, (shape[1], shape[0])


def _read(graph: str, part: PartName, config: DecoderConfig) -> Fraction:
    """The share of a parameter that a step reads which generates one token."""
    if graph in (names.VISION, names.PROJECTOR):
        return Fraction(0)
    if part == "experts":
        return Fraction(config.experts_per_token, config.num_experts)
    return Fraction(1, config.vocab_size) if part == "embedding" else Fraction(1)
