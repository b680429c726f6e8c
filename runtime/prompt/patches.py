"""The image rule: which grid an image gets, and its pixels as normalised patches.

An image is shrunk only when it has more patches than the limit, then padded with black on the
right and below to whole merged cells. Nothing is ever enlarged or cropped.

Source: Kimi-VL `image_processing_kimi_vl.py` (KimiVLImageProcessor).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config_fields import Reader
from ..errors import CheckpointError, InputError, describe_problems
from ..json_file import read_json_object

MAX_SIDE = 512
"""A grid has fewer patches than this on each side; the vision rotation reaches no further."""

RULE_FILE = "preprocessor_config.json"

_INERT_FIELDS = frozenset(
    {"auto_map", "num_pooled_tokens", "image_processor_type", "processor_class"}
    | {"feature_extractor_type"}
)
_FIELDS = frozenset(
    {"in_token_limit", "patch_size", "image_mean", "image_std", "pad_input", "merge_kernel_size"}
)

Channels = tuple[float, float, float]


class Grid(NamedTuple):
    """Rows and columns of an image in patches."""

    h: int
    w: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchedImage:
    """An image as the vision encoder takes it."""

    patches: NDArray[np.float32]
    """Normalised pixels (h, w, 3 * rows * columns); the last axis is channel, row, column."""

    @property
    def grid(self) -> Grid:
        """Rows and columns in patches, both even."""
        return Grid(*self.patches.shape[:2])

    @property
    def num_tokens(self) -> int:
        """Image tokens, one for 2 x 2 patches."""
        return self.grid.h * self.grid.w // 4


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class ImageRule:
    """How a checkpoint wants its images."""

    in_token_limit: int
    """Patches above which an image is shrunk; padding may lead over it."""
    patch_size: int
    mean: Channels
    std: Channels
    merge: int = 2
    """Patches per side that become one image token."""

    @classmethod
    def load(cls, folder: Path) -> "ImageRule":
        """Read `preprocessor_config.json` of a checkpoint folder.

        Raises:
            CheckpointError: the file is missing, lacks a fact or says something that is not
                implemented; all such fields are named at once.
        """
        path = folder / RULE_FILE
        fields = read_json_object(path)
        reader = Reader(fields, prefix="")
        reader.expect("pad_input", True)
        reader.expect_if_present("merge_kernel_size", [2, 2])
        rule = cls(
            in_token_limit=reader.integer("in_token_limit"),
            patch_size=reader.integer("patch_size"),
            mean=_read_channels(reader, fields, "image_mean"),
            std=_read_channels(reader, fields, "image_std"),
        )
        if 0.0 in rule.std:
            reader.problem("image_std: a channel is divided by zero")
        reader.refuse_unknown(_FIELDS | _INERT_FIELDS)
        if reader.problems:
            raise CheckpointError(describe_problems(str(path), reader.problems))
        return rule

    def grid(self, width: int, height: int) -> Grid:
        """Tell the grid of an image of that many pixels.

        Raises:
            InputError: a side has 512 patches or more even after shrinking.
        """
        shrunk = self._shrink(width, height)
        cell = self.merge * self.patch_size
        grid = Grid(
            h=math.ceil(shrunk.height / cell) * self.merge,
            w=math.ceil(shrunk.width / cell) * self.merge,
        )
        if max(grid) >= MAX_SIDE:
            raise InputError(
                f"an image of {width} x {height} pixels makes {grid.w} x {grid.h} patches and a "
                f"side must stay under {MAX_SIDE}; crop it to a less extreme shape"
            )
        return grid

    def patchify(self, image: Image.Image) -> PatchedImage:
        """Shrink, pad, normalise and cut an RGB image.

        Raises:
            InputError: a side has 512 patches or more even after shrinking.
        """
        if image.mode != "RGB":
            raise ValueError(f"expected an RGB image, found mode {image.mode}")
        grid = self.grid(*image.size)
        shrunk = self._shrink(*image.size)
        if shrunk != image.size:
            image = image.resize(shrunk, resample=Image.Resampling.BICUBIC)
        side = self.patch_size
        pixels = np.zeros((grid.h * side, grid.w * side, 3), dtype=np.uint8)
        pixels[: shrunk.height, : shrunk.width] = np.asarray(image)
        cut = pixels.reshape(grid.h, side, grid.w, side, 3)
        cut = cut.transpose(0, 2, 4, 1, 3)  # (h, w, 3, rows, columns)
        levels = self._levels()
        patches = np.empty(cut.shape, dtype=np.float32)
        for channel in range(3):
            patches[:, :, channel] = levels[channel][cut[:, :, channel]]
        return PatchedImage(patches=patches.reshape(grid.h, grid.w, 3 * side**2))

    def _shrink(self, width: int, height: int) -> Size:
        if width < 1 or height < 1:
            raise ValueError(f"an image has at least one pixel, found {width} x {height}")
        num_patches = (width // self.patch_size) * (height // self.patch_size)
        if num_patches <= self.in_token_limit:
            return Size(width, height)
        scale = math.sqrt(self.in_token_limit / num_patches)
        return Size(max(1, int(width * scale)), max(1, int(height * scale)))

    def _levels(self) -> NDArray[np.float32]:
        """Normalise each of the 256 values of a channel, (3, 256)."""
        values = np.arange(256, dtype=np.float32) / np.float32(255)
        mean = np.asarray(self.mean, dtype=np.float32)[:, None]
        std = np.asarray(self.std, dtype=np.float32)[:, None]
        return (values - mean) / std


def _read_channels(reader: Reader, fields: Mapping[str, Any], name: str) -> Channels:
    values = fields.get(name)
    if (
        not isinstance(values, list)
        or len(values) != 3
        or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values)
        or not all(math.isfinite(value) for value in values)
    ):
        reader.problem(f"{name}: expected three numbers, found {values!r}")
        return (0.5, 0.5, 0.5)
    red, green, blue = values
    return (float(red), float(green), float(blue))


def max_patches(rule: ImageRule) -> int:
    """Return the largest number of patches that any image makes under the rule.

    Exact, by three scans over (a, b), the whole patches on the short and the long side:

    1. a * b within the limit: not shrunk, and 13 further pixels (of 14) open one more cell.
    2. a, b without bound: shrunk sides of any ratio with width * height below the limit's area.
    3. small a, b over the limit: the pixels beyond whole patches are shrunk too, so that the area
       passes the limit's by a factor of up to (1 + 13 / 14a)(1 + 13 / 14b). A better cell
       count needs a certain factor, which bounds a; the side limit bounds b.
    """
    best = _most_without_shrinking(rule)
    cell = rule.merge * rule.patch_size
    cells = np.arange(1, (MAX_SIDE - 1) // rule.merge + 1)
    least = cell * (cells - 1) + 1  # pixels that a side needs for so many cells
    areas = np.outer(least, least) / (rule.in_token_limit * rule.patch_size**2)
    counts = np.outer(cells, cells) * rule.merge**2
    best = max(best, int(counts[areas < 1].max(initial=0)))
    short = 1
    while True:
        better = areas[counts > best]
        spare = (rule.patch_size - 1) / (rule.patch_size * short)
        if not better.size or (1 + spare) ** 2 < better.min():
            return best
        best = max(best, _most_with_short_side(rule, short))
        short += 1


def _most_without_shrinking(rule: ImageRule) -> int:
    sides = np.arange(MAX_SIDE - 1)
    others = np.minimum(MAX_SIDE - 2, rule.in_token_limit // np.maximum(sides, 1))
    most_cells = (MAX_SIDE - 1) // rule.merge
    cells = np.minimum(most_cells, sides // rule.merge + 1)
    return int((cells * np.minimum(most_cells, others // rule.merge + 1)).max()) * rule.merge**2


def _most_with_short_side(rule: ImageRule, short: int) -> int:
    limit = rule.in_token_limit
    longest = MAX_SIDE**2 * short // limit + 1
    sides = np.arange(max(short, limit // short + 1), longest + 1)
    scales = np.sqrt(limit / (short * sides))
    reach = rule.patch_size - 1
    cell = rule.merge * rule.patch_size
    most = (MAX_SIDE - 1) // rule.merge
    fits = np.ones(sides.shape, dtype=bool)
    cells = np.ones(sides.shape, dtype=np.int64)
    for side in (np.full_like(sides, short), sides):
        widest = ((rule.patch_size * side + reach) * scales).astype(np.int64)
        narrowest = (rule.patch_size * side * scales).astype(np.int64)
        fits &= narrowest <= most * cell  # with fewer spare pixels it stays within the sides
        cells *= np.minimum(most, -(-widest // cell))
    return int(cells[fits].max(initial=0)) * rule.merge**2


def position_weights(size: int, table_size: int) -> NDArray[np.float32]:
    """Return the bicubic weights that stretch a learned table to `size` positions.

    The two axes are independent: rows @ table @ columns.T resizes a table to a grid.

    Returns:
        Weights (size, table_size): half-pixel centres, coefficient -0.75, border values repeated,
        no antialias; the identity when the sizes are equal.

    Source: torch `interpolate(mode="bicubic", align_corners=False)`, MoonViT
    `Learnable2DInterpPosEmb`.
    """
    places = (np.arange(size) + 0.5) * (table_size / size) - 0.5
    left = np.floor(places).astype(np.int64)
    weights = np.zeros((size, table_size))
    for tap in range(-1, 3):
        index = np.clip(left + tap, 0, table_size - 1)
        np.add.at(weights, (np.arange(size), index), _cubic(np.abs(places - (left + tap))))
    return weights.astype(np.float32)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)
