"""Draws pictures of numbers: every size, shape, colour and place, in the fonts that Pillow ships.

Does not know: questions, tokens, patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

Rng = np.random.Generator
Colour = tuple[int, int, int]

MIN_CONTRAST = 80.0
"""Least difference in brightness between number and background, of 255."""
MIN_HEIGHT = 11
"""Pixels: a number is not drawn lower than this if the picture has room for it."""
_BRIGHTNESS = np.array([0.299, 0.587, 0.114])
_BITMAP_SCALES = (2, 3)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one number looks; all numbers of a picture share it."""

    size: int
    """Of the font, in pixels."""
    bitmap: bool
    """Pillow's old bitmap font, enlarged, instead of its outline font."""
    bold: bool
    slant: float
    stretch: float
    """Width of the glyphs against their usual one."""
    turn: float
    """Degrees."""
    blur: float
    ink: Colour
    paper: Colour
    paper_end: Colour
    """The background's colour at the other end; equal to `paper` without a gradient."""
    num_specks: int


def draw_picture(
    rng: Rng, numbers: Sequence[int], size: tuple[int, int], ease: float
) -> Image.Image:
    """Draw one or two numbers.

    Args:
        rng: everything that varies comes from it.
        numbers: one, or two in reading order: left to right, or top to bottom.
        size: width and height in pixels.
        ease: 1 for plain pictures (black on white, upright, in the middle), 0 for all the variety.

    Returns:
        An RGB picture.
    """
    style = _draw_style(rng, size, ease)
    picture = _paper(style, size)
    for number, region in zip(numbers, _regions(rng, len(numbers), size), strict=True):
        _write(rng, picture, str(number), region, style, ease)
    _speckle(rng, picture, style)
    if style.blur > 0.1:
        picture = picture.filter(ImageFilter.GaussianBlur(style.blur))
    return picture


def _draw_style(rng: Rng, size: tuple[int, int], ease: float) -> Style:
    variety = 1.0 - ease
    ink, paper = _colours(rng, plain=rng.random() < ease)
    is_gradient = rng.random() < 0.3 * variety
    middle = 26.0
    low, high = middle - 12 * variety, middle + (max(size) / 3 - 10) * variety
    return Style(
        size=int(rng.uniform(low, max(high, low + 4))),
        bitmap=bool(rng.random() < 0.08 * variety),
        bold=bool(rng.random() < 0.35 * variety),
        slant=float(rng.uniform(-0.05, 0.3)) * variety if rng.random() < 0.3 else 0.0,
        stretch=float(np.exp(rng.uniform(-0.25, 0.25) * variety)),
        turn=float(rng.uniform(-12, 12)) * variety if rng.random() < 0.6 else 0.0,
        blur=float(rng.uniform(0, 0.7)) * variety,
        ink=ink,
        paper=paper,
        paper_end=_near(rng, paper) if is_gradient else paper,
        num_specks=int(rng.integers(0, 9) * variety),
    )


def _colours(rng: Rng, *, plain: bool) -> tuple[Colour, Colour]:
    if plain:
        return (0, 0, 0), (255, 255, 255)
    while True:
        ink, paper = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
        if abs(float((ink - paper) @ _BRIGHTNESS)) >= MIN_CONTRAST:
            return _colour(ink), _colour(paper)


def _near(rng: Rng, colour: Colour) -> Colour:
    return _colour(np.clip(np.array(colour) + rng.integers(-30, 31, 3), 0, 255))


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def _paper(style: Style, size: tuple[int, int]) -> Image.Image:
    if style.paper == style.paper_end:
        return Image.new("RGB", size, style.paper)
    ramp = np.linspace(0, 1, size[1])[:, None]  # (height, 1)
    column = np.array(style.paper) * (1 - ramp) + np.array(style.paper_end) * ramp
    return Image.fromarray(column.astype(np.uint8)[:, None]).resize(size, Image.Resampling.NEAREST)


def _regions(rng: Rng, count: int, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Split the picture into places for numbers: left, top, right, bottom."""
    width, height = size
    if count == 1:
        return [(0, 0, width, height)]
    if width > 1.4 * height or (height < 1.4 * width and rng.random() < 0.5):
        return [(0, 0, width // 2 - 2, height), (width // 2 + 2, 0, width, height)]
    return [(0, 0, width, height // 2), (0, height // 2, width, height)]


def _write(
    rng: Rng,
    picture: Image.Image,
    text: str,
    region: tuple[int, int, int, int],
    style: Style,
    ease: float,
) -> None:
    left, top, right, bottom = region
    room = (right - left - 2, bottom - top - 2)
    mask = _fit(_mask(text, style), room)
    spare = (right - left - mask.width, bottom - top - mask.height)
    reach = 0.15 + 0.35 * (1.0 - ease)
    place = [value * (0.5 + float(rng.uniform(-reach, reach))) for value in spare]
    picture.paste(style.ink, (left + round(place[0]), top + round(place[1])), mask)


def _fit(mask: Image.Image, room: tuple[int, int]) -> Image.Image:
    """Shrink a mask to the room it has; enlarge one that is too low to read, if there is room."""
    most = min(room[0] / mask.width, room[1] / mask.height)
    scale = min(most, max(1.0, MIN_HEIGHT / mask.height))
    if scale == 1.0:
        return mask
    size = (max(1, int(mask.width * scale)), max(1, int(mask.height * scale)))
    return mask.resize(size, Image.Resampling.LANCZOS)


def _mask(text: str, style: Style) -> Image.Image:
    mask = _bitmap_mask(text, style.size) if style.bitmap else _outline_mask(text, style)
    width, height = mask.size
    if style.slant:
        extra = int(abs(style.slant) * height) + 1
        shift = -extra if style.slant < 0 else 0
        mask = mask.transform(
            (width + extra, height),
            Image.Transform.AFFINE,
            (1, style.slant, -style.slant * height - shift, 0, 1, 0),
            Image.Resampling.BILINEAR,
        )
    if abs(style.stretch - 1) > 0.02:
        size = (max(1, int(mask.width * style.stretch)), height)
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    if abs(style.turn) > 0.5:
        mask = mask.rotate(style.turn, Image.Resampling.BICUBIC, expand=True)
    box = mask.getbbox()
    return mask.crop(box) if box else mask


def _outline_mask(text: str, style: Style) -> Image.Image:
    font = _outline_font(style.size)
    stroke = max(1, style.size // 24) if style.bold else 0
    left, top, right, bottom = (int(value) for value in font.getbbox(text, stroke_width=stroke))
    mask = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), text, fill=255, font=font, stroke_width=stroke)
    return mask


def _bitmap_mask(text: str, size: int) -> Image.Image:
    font = _bitmap_font()
    left, top, right, bottom = (int(value) for value in font.getbbox(text))
    mask = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(mask).text((1, 1), text, fill=255, font=font)
    scale = _BITMAP_SCALES[size > 28]
    return mask.resize((mask.width * scale, mask.height * scale), Image.Resampling.NEAREST)


@lru_cache(maxsize=256)
def _outline_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise TypeError("this Pillow was built without FreeType, so it has no outline font")
    return font


@lru_cache(maxsize=1)
def _bitmap_font() -> ImageFont.ImageFont:
    return ImageFont.load_default_imagefont()


def _speckle(rng: Rng, picture: Image.Image, style: Style) -> None:
    draw = ImageDraw.Draw(picture)
    for _ in range(style.num_specks):
        x, y = int(rng.integers(picture.width)), int(rng.integers(picture.height))
        draw.point((x, y), fill=style.ink if rng.random() < 0.5 else style.paper)


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    """Tell whether two pictures show exactly the same."""
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None
