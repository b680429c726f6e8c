"""A picture of failures: images, question, what was expected, what was said."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from runtime.files import write_bytes
from runtime.prompt.images import load_image

from .evaluate import Outcome

_CELL = (320, 200)
_COLUMNS = 4
_MAX_CELLS = 64
_MARGIN = 8


def write_contact_sheet(path: Path, failures: Sequence[Outcome]) -> None:
    """Write a PNG with the first 64 failures; an empty sheet if there are none."""
    shown = failures[:_MAX_CELLS]
    rows = max(1, -(-len(shown) // _COLUMNS))
    sheet = Image.new("RGB", (_COLUMNS * _CELL[0], rows * _CELL[1]), "white")
    for index, outcome in enumerate(shown):
        place = (index % _COLUMNS * _CELL[0], index // _COLUMNS * _CELL[1])
        sheet.paste(_draw_cell(outcome), place)
    if not shown:
        ImageDraw.Draw(sheet).text((_MARGIN, _MARGIN), "no failures", fill="black")
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    write_bytes(path, content.getvalue())


def _draw_cell(outcome: Outcome) -> Image.Image:
    cell = Image.new("RGB", _CELL, "white")
    draw = ImageDraw.Draw(cell)
    draw.rectangle((0, 0, _CELL[0] - 1, _CELL[1] - 1), outline="lightgrey")
    left = _MARGIN
    pictures = outcome.example.image_paths
    for path in pictures:
        picture = load_image(path)
        picture.thumbnail(((_CELL[0] - _MARGIN) // len(pictures) - _MARGIN, 110))
        cell.paste(picture, (left, _MARGIN))
        left += picture.width + _MARGIN
    lines = [
        outcome.example.question,
        f"expected: {outcome.example.answer}",
        f"said: {outcome.answer!r}",
        f"thought: {outcome.thinking!r}",
    ]
    font = ImageFont.load_default(13)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, 122 + 18 * number), line[:46], fill="black", font=font)
    return cell
