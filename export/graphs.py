"""The graphs of the model: for each its module, its contract, and its prefix in the checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from runtime import names
from runtime.config import DecoderConfig, KimiVLConfig

from .modules.decoder import DecoderLayer, Head
from .modules.vision import Projector, VisionTower
from .trace import GraphSpec

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Recipes without quantisation, and the type they store and trace in."""

EMBEDDING_TENSOR = "language_model.model.embed_tokens.weight"


@dataclass(frozen=True, kw_only=True)
class GraphPlan:
    """One graph to export."""

    name: str
    """Also the name of its files."""
    kind: str
    """Graphs of one kind differ in nothing but their weights."""
    prefix: str
    """Of its tensors in the checkpoint."""
    build: Callable[[], nn.Module]
    """Make the module with memory reserved and no values."""
    spec: GraphSpec

    @property
    def is_layer(self) -> bool:
        """Whether it is a decoder layer, with a cache."""
        return names.CACHE in self.spec.inputs


def plan_graphs(
    config: KimiVLConfig, dtype: torch.dtype, layers: Sequence[int], *, taps: bool
) -> list[GraphPlan]:
    """List the graphs in the order of the data: vision, projector, layers, head."""
    decoder = config.decoder
    return [
        GraphPlan(
            name=names.VISION,
            kind=names.VISION,
            prefix="vision_tower.",
            build=lambda: VisionTower(config, dtype),
            spec=_vision_spec(config),
        ),
        GraphPlan(
            name=names.PROJECTOR,
            kind=names.PROJECTOR,
            prefix="multi_modal_projector.",
            build=lambda: Projector(config, dtype),
            spec=_projector_spec(config, dtype),
        ),
        *(_plan_layer(decoder, dtype, layer, taps=taps) for layer in layers),
        GraphPlan(
            name=names.HEAD,
            kind=names.HEAD,
            prefix="language_model.",
            build=lambda: Head(decoder, dtype),
            spec=_head_spec(decoder, dtype),
        ),
    ]


def _plan_layer(config: DecoderConfig, dtype: torch.dtype, layer: int, *, taps: bool) -> GraphPlan:
    dense = config.is_dense(layer)
    return GraphPlan(
        name=names.layer_name(layer),
        kind="dense_layer" if dense else "moe_layer",
        prefix=f"language_model.model.layers.{layer}.",
        build=lambda: DecoderLayer(config, dtype, dense=dense, taps=taps),
        spec=_layer_spec(config, dtype, taps=taps and not dense),
    )


def _vision_spec(config: KimiVLConfig) -> GraphSpec:
    vision = config.vision
    return GraphSpec(
        name=names.VISION,
        inputs=(names.PATCHES, names.ROW_WEIGHTS, names.COLUMN_WEIGHTS),
        outputs=(names.MERGED,),
        examples=(
            torch.zeros(6, 4, vision.patch_values),
            torch.zeros(6, vision.table_height),
            torch.zeros(4, vision.table_width),
        ),
        dynamic=({0: "2*h", 1: "2*w"}, {0: "2*h"}, {0: "2*w"}),
        output_axes={names.MERGED: {0: "M"}},
    )


def _projector_spec(config: KimiVLConfig, dtype: torch.dtype) -> GraphSpec:
    return GraphSpec(
        name=names.PROJECTOR,
        inputs=(names.MERGED,),
        outputs=(names.FEATURES,),
        examples=(torch.zeros(3, 4, config.vision.width, dtype=dtype),),
        dynamic=({0: "M"},),
    )


def _layer_spec(config: DecoderConfig, dtype: torch.dtype, *, taps: bool) -> GraphSpec:
    tapped = (names.TAP_EXPERTS, names.TAP_SCORES, names.TAP_MARGIN) if taps else ()
    batch, tokens, cached = 2, 3, 9
    cache = (
        torch.zeros(batch, 1, cached, config.latent_width, dtype=dtype),
        {0: "B", 2: "T"},
    )
    return GraphSpec(
        name="decoder_layer",
        inputs=(names.HIDDEN, names.CACHE, names.LENGTHS),
        outputs=(names.HIDDEN_OUT, names.CACHE_OUT, *tapped),
        examples=(
            torch.zeros(batch, tokens, config.width, dtype=dtype),
            cache[0],
            torch.zeros(batch, dtype=torch.int64),
        ),
        dynamic=({0: "B", 1: "S"}, cache[1], {0: "B"}),
    )


def _head_spec(config: DecoderConfig, dtype: torch.dtype) -> GraphSpec:
    return GraphSpec(
        name=names.HEAD,
        inputs=(names.HIDDEN, names.ROWS),
        outputs=(names.LOGITS,),
        examples=(torch.zeros(2, 3, config.width, dtype=dtype), torch.zeros(4, dtype=torch.int64)),
        dynamic=({0: "B", 1: "S"}, {0: "N"}),
    )
