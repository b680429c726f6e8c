"""The vision encoder timed alone: one image of a size after the other.

Pixels are random: what is in a picture does not change how long it takes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import numpy as np
from PIL import Image

from runtime.engine.protocol import Engine
from runtime.errors import CapacityError, InputError
from runtime.limits import Limits
from runtime.prompt.images import MAX_PIXELS
from runtime.prompt.patches import ImageRule, PatchedImage

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class ImageSize(NamedTuple):
    """Pixels of an image."""

    width: int
    height: int

    @classmethod
    def from_text(cls, text: str) -> "ImageSize":
        """Read `448x448`, width first.

        Raises:
            InputError: it is written in another way.
        """
        found = _SIZE.fullmatch(text.strip())
        if found is None:
            raise InputError(f"--images: expected sizes such as 448x448, found {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


USUAL_SIZES = (ImageSize(448, 448), ImageSize(1920, 1080))


@dataclass(frozen=True, kw_only=True)
class TimedImage:
    """One size of image and how long its encoder took."""

    size: ImageSize
    patches: int
    image_tokens: int
    patch_s: float
    """To shrink, pad and cut the pixels, before the encoder."""
    samples_s: tuple[float, ...]


class SizeChoice(NamedTuple):
    """The sizes that fit, and a phrase for each that does not."""

    sizes: list[ImageSize]
    left_out: list[str]


def choose_sizes(wanted: Sequence[ImageSize] | None, rule: ImageRule, limits: Limits) -> SizeChoice:
    """Keep the sizes whose patches fit.

    Args:
        wanted: all must fit; of the usual ones, if left out, those that do are taken.
        rule: of the checkpoint.
        limits: of the engine.

    Raises:
        CapacityError: one that was asked for is over the limits.
        InputError: one that was asked for is of too extreme a shape.
    """
    sizes, left_out = [], []
    for size in USUAL_SIZES if wanted is None else wanted:
        misfit = _misfit(size, rule, limits)
        if misfit is None:
            sizes.append(size)
        elif wanted is None:
            left_out.append(f"vit {size}: {misfit}")
        else:
            raise CapacityError(f"--images {size} does not fit: {misfit}; ask for a smaller one")
    return SizeChoice(sizes, left_out)


def _misfit(size: ImageSize, rule: ImageRule, limits: Limits) -> str | None:
    if size.width * size.height > MAX_PIXELS:
        return f"images have at most {MAX_PIXELS:,} pixels"
    h, w = rule.grid(*size)
    if h * w > limits.max_patches:
        return (
            f"it makes {h * w} patches and the engine takes {limits.max_patches} (build with "
            f"--max-image-tokens {h * w // 4} for more)"
        )
    return None


def random_image(size: ImageSize, *, seed: int = 1) -> Image.Image:
    """Make an RGB image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size.height, size.width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def time_image(
    engine: Engine,
    rule: ImageRule,
    size: ImageSize,
    repeats: int,
    *,
    clock: Callable[[], float] = perf_counter,
) -> TimedImage:
    """Encode an image once unmeasured, then `repeats` times."""
    picture = random_image(size)
    start = clock()
    image = rule.patchify(picture)
    patch_s = clock() - start
    engine.encode(image)
    return TimedImage(
        size=size,
        patches=image.grid.h * image.grid.w,
        image_tokens=image.num_tokens,
        patch_s=patch_s,
        samples_s=tuple(_encode_s(engine, image, clock) for _ in range(repeats)),
    )


def _encode_s(engine: Engine, image: PatchedImage, clock: Callable[[], float]) -> float:
    start = clock()
    engine.encode(image)
    return clock() - start
