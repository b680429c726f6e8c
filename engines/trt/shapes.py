"""The profiles of each graph of a job."""

from collections.abc import Sequence
from dataclasses import replace
from math import gcd, lcm

from runtime import names
from runtime.artifact.records import TYPE_BYTES, CacheRecord
from runtime.config import KimiVLConfig
from runtime.engine.trt.contract import cache_names
from runtime.limits import Limits

from .profiles import (
    ShapeRange,
    Shapes,
    decoder_profiles,
    head_profiles,
    projector_profile,
    vision_bands,
    vision_box,
)

ALIGNMENT_BYTES = 256
LEAST_STEP = 16
"""Capacities come in multiples of this, whatever the widths."""
BAND_WASTE = 4.0
"""How much larger than any image a grid may be that vision's memory is reserved for."""


def aligned_limits(limits: Limits, cache: CacheRecord) -> Limits:
    """Raise the capacity until the cache of every slot begins where TensorRT takes an address.

    Source: `setTensorAddress` in TensorRT's NvInferRuntime.h: 256 bytes.
    """
    steps = (
        ALIGNMENT_BYTES // gcd(ALIGNMENT_BYTES, TYPE_BYTES[one.dtype] * one.width)
        for one in cache.tensors.values()
    )
    step = lcm(LEAST_STEP, *steps)
    return replace(limits, max_tokens=-(-limits.max_tokens // step) * step)


def limits_before_alignment(aligned: Limits, cache: CacheRecord) -> Limits:
    """Undo `aligned_limits` where a prompt shows what the capacity was: it could fill it."""
    found = replace(aligned, max_tokens=aligned.max_input_tokens)
    return found if aligned_limits(found, cache) == aligned else aligned


def graph_profiles(
    graphs: Sequence[str],
    config: KimiVLConfig,
    cache: CacheRecord,
    limits: Limits,
    *,
    is_shared: bool,
) -> Sequence[Shapes]:
    """Make the profiles of a graph, or of several layers in one.

    Args:
        graphs: one name, or those of the layers.
        config: sizes of the model.
        cache: tensors of a layer.
        limits: what the target is built for.
        is_shared: whether profiles share weights. Where they do not, each profile would store them
            again, so there is one: everything between the smallest step and the largest.
    """
    width, name = config.decoder.width, graphs[0]
    if name == names.VISION:
        box = vision_box(config.vision, limits.max_patches)
        return vision_bands(config.vision, limits.max_patches, BAND_WASTE) if is_shared else [box]
    if name == names.PROJECTOR:
        return [projector_profile(config.vision, limits.max_patches)]
    if name == names.HEAD:
        found = head_profiles(width, limits)
    else:
        widths = {
            called[name]: cache.tensors[name].width
            for called in cache_names(cache.tensors, len(graphs))
            for name in called
        }
        found = decoder_profiles(width, widths, limits, has_window=True)
    return found if is_shared else [_joined(found)]


def _joined(profiles: Sequence[Shapes]) -> Shapes:
    """Make one profile that holds all shapes of several, with the usual ones of the first."""
    return {
        name: ShapeRange(
            tuple(map(min, *(one[name].min for one in (*profiles, profiles[0])))),
            profiles[0][name].opt,
            tuple(map(max, *(one[name].max for one in (*profiles, profiles[0])))),
        )
        for name in profiles[0]
    }
