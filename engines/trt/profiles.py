"""The shapes that each graph is built for: arithmetic on limits and the model's sizes.

A profile gives every input that has free sizes its smallest, usual and largest shape. TensorRT
reserves memory for the largest shapes of a profile and tunes for the usual ones.

Shape letters as in `runtime.names`; h and w are the grid of an image in patches.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from runtime import names
from runtime.config import VisionConfig
from runtime.limits import Limits
from runtime.prompt.patches import MAX_SIDE, Grid

MERGE_PATCHES = 4
"""Patches of one image token."""
USUAL_WINDOW = 1024
"""Rows of the cache that are usually in use: a prompt with one image, and an answer."""


class ShapeRange(NamedTuple):
    """Shapes of one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


Shapes = Mapping[str, ShapeRange]
"""One profile: by the names of inputs."""


def usual_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Give the usual shape of each input."""
    return {name: one.opt for name, one in shapes.items()}


def vision_box(config: VisionConfig, max_patches: int) -> Shapes:
    """Make one profile for every grid.

    h and w are even, from 2 up to the longest side of any grid: the largest grid by area is nearly
    square, yet one of two rows may be as long as max_patches / 2 or the rotation (510) allow. So
    the box also holds grids that no image has, up to 510 x 510 (14.6 times 17,856 patches), and
    memory is reserved for them. `vision_bands` reserves less.

    Args:
        config: sizes of MoonViT.
        max_patches: of the largest image, at least 4.
    """
    side = longest_side(max_patches)
    return _vision(config, max_patches, Grid(2, 2), Grid(side, side))


def vision_bands(config: VisionConfig, max_patches: int, waste: float) -> list[Shapes]:
    """Make profiles that together hold every grid and reserve for few that no image has.

    Each takes a band of heights and all widths that go with its lowest one. For 17,856 patches and
    one block of the released sizes in fp16, TensorRT-RTX 1.7 reserves 4993 MiB for the box, 1371
    MiB for bands of waste 4 (two of them) and 686 MiB for waste 2 (four).

    Args:
        config: sizes of MoonViT.
        max_patches: of the largest image, at least 4.
        waste: how many times `max_patches` the largest grid of a band may have, at least 2.
    """
    side = longest_side(max_patches)
    found, low = [], 2
    while low <= side:
        width = min(side, _even(max_patches // low))
        high = max(low, min(side, _even(int(waste * max_patches) // width)))
        found.append(_vision(config, max_patches, Grid(low, 2), Grid(high, width)))
        low = high + 2
    return found


def longest_side(max_patches: int) -> int:
    """Give the most patches, an even number, that a side of any grid has."""
    return min(_even(MAX_SIDE - 1), _even(max_patches // 2))


def projector_profile(config: VisionConfig, max_patches: int) -> Shapes:
    """Make the profile of the projector: M image tokens of one image."""
    usual = min(config.table_height * config.table_width, max_patches) // MERGE_PATCHES
    sizes = (1, usual, max_patches // MERGE_PATCHES)
    shapes = ((size, config.merge**2, config.width) for size in sizes)
    return {names.MERGED: ShapeRange(*shapes)}


def decoder_profiles(
    width: int, cache_widths: Mapping[str, int], limits: Limits, *, has_window: bool
) -> list[Shapes]:
    """Make the profiles of a decoder layer: the first decodes, the second prefills.

    Decoding appends one token to each of B slots, prefilling up to `prefill_chunk` tokens, usually
    to one slot. The cache always has its whole capacity, of which attention may read a window.

    Args:
        width: C.
        cache_widths: numbers per token in each cache tensor of a layer, by name.
        limits: slots, tokens and the chunk.
        has_window: whether the layer has the input `window`.
    """
    found = [
        _decoder(batch, tokens, width, cache_widths, limits) for batch, tokens in _steps(limits)
    ]
    if has_window:
        usual = min(USUAL_WINDOW, limits.max_tokens)
        window = ShapeRange((1,), (usual,), (limits.max_tokens,))
        found = [{**shapes, names.WINDOW: window} for shapes in found]
    return found


def head_profiles(width: int, limits: Limits) -> list[Shapes]:
    """Make the profiles of the head, in the order of `decoder_profiles`.

    Logits are asked for one token of each slot or for all tokens of one slot, whichever is more;
    logits of all tokens of all slots would be gigabytes.
    """
    most = [max(2, limits.max_slots), max(limits.max_slots, limits.prefill_chunk)]
    found: list[Shapes] = []
    for (batch, tokens), rows in zip(_steps(limits), most, strict=False):
        usual = batch[1]
        found.append(
            {
                names.HIDDEN: _range((batch, tokens), (width,)),
                names.ROWS: ShapeRange((1,), (usual,), (rows,)),
            }
        )
    return found


_Sizes = tuple[int, int, int]
"""Smallest, usual and largest size of an axis."""


def _steps(limits: Limits) -> Iterator[tuple[_Sizes, _Sizes]]:
    """Give B and S of decoding, then of prefilling if a step may have more than one token.

    Decoding is never of one row alone: for a fixed row the builder reserves a second copy of plain
    weights that are inputs (679 MB for a head of the released sizes against 8 MB).
    """
    slots, chunk = limits.max_slots, limits.prefill_chunk
    yield (1, slots, max(2, slots)), (1, 1, 1)
    if chunk > 1:
        yield (1, 1, slots), (1, chunk, chunk)


def _decoder(
    batch: _Sizes, tokens: _Sizes, width: int, cache_widths: Mapping[str, int], limits: Limits
) -> Shapes:
    return {
        names.HIDDEN: _range((batch, tokens), (width,)),
        **{
            name: _range((batch,), (1, limits.max_tokens, cached))
            for name, cached in cache_widths.items()
        },
        names.LENGTHS: _range((batch,), ()),
    }


def _vision(config: VisionConfig, max_patches: int, least: Grid, most: Grid) -> Shapes:
    """Make a profile between two grids; usual is the one that the position table was made for."""
    h = max(least.h, min(_even(config.table_height), most.h))
    w = max(least.w, min(_even(config.table_width), most.w, _even(max_patches // h)))
    heights, widths = (least.h, h, most.h), (least.w, w, most.w)
    return {
        names.PATCHES: _range((heights, widths), (config.patch_values,)),
        names.ROW_WEIGHTS: _range((heights,), (config.table_height,)),
        names.COLUMN_WEIGHTS: _range((widths,), (config.table_width,)),
    }


def _range(free: tuple[_Sizes, ...], fixed: tuple[int, ...]) -> ShapeRange:
    """Join free axes and the fixed ones that follow them."""
    return ShapeRange(*((*sizes, *fixed) for sizes in zip(*free, strict=True)))


def _even(count: int) -> int:
    return count - count % 2
