"""Opens an image from anywhere but the network and gives it back as RGB.

The border against foreign bytes: size limits are checked from the header before anything is
decoded, only common formats are tried, and every way to fail is one `InputError` or
`CapacityError`. What becomes of the pixels is `patches.py`'s business.

Alpha is dropped, not blended, as the reference does (`convert("RGB")`): what a transparent pixel
hides shows. Images of more than 8 bits are scaled by their high byte, as PIL does with 16-bit
colour; plain `convert("RGB")` would clip them to white.

Source: transformers `image_utils.load_image`, Kimi-VL `image_processing_kimi_vl.py`.
"""

import base64
import binascii
import io
import stat
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import CapacityError, InputError
from .messages import ImageSource

MAX_PIXELS = 64_000_000
"""Largest width x height that is decoded."""
MAX_FILE_BYTES = 64 * 2**20
"""Largest image file."""

# Without EPS (starts another program) and the rare formats (seldom tested against bad bytes).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
# PIL gives these formats' 16-bit grey values as 32-bit integers in the range of 16 bits.
_SIXTEEN_BIT_FORMATS = frozenset({"PNG", "PPM"})
_LONGEST_NAME = 200
_BROKEN = (
    OSError,
    SyntaxError,  # PIL's word for a broken PNG
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What PIL raises on bytes that are no image or a broken one."""

_WARNINGS_LOCK = threading.Lock()
"""`warnings.catch_warnings` changes the whole process, so one thread at a time may decode."""


def load_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_FILE_BYTES
) -> Image.Image:
    """Open an image, turn it upright by its EXIF orientation, and make it RGB.

    Of an animation the first picture is taken.

    Args:
        source: a path, a base64 data URL, the bytes of a file, or an open image.
        max_pixels: largest width x height.
        max_bytes: largest file.

    Raises:
        InputError: the source is missing, empty, broken or of an unknown format.
        CapacityError: it is over one of the limits.
    """
    name = _name_of(source)
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = source if isinstance(source, Image.Image) else _open(source, name, max_bytes)
            _check_size(image, name, max_pixels)
            return _as_rgb(ImageOps.exif_transpose(image), name, image.format)
        except Image.DecompressionBombError as error:
            raise CapacityError(
                f"{name}: the image is over the limit of {max_pixels:,} pixels; shrink it"
            ) from error
        except UnidentifiedImageError as error:
            raise InputError(
                f"{name}: no image of a known format; use one of {', '.join(_FORMATS)}"
            ) from error
        except _BROKEN as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{name}: the image is broken: {reason}") from error


def _name_of(source: ImageSource) -> str:
    if isinstance(source, bytes):
        return "bytes"
    if isinstance(source, Image.Image):
        return "PIL image"
    if _is_data_url(source):
        return "data URL"
    path = repr(str(source))[1:-1]  # one line, whatever is in it
    return path if len(path) <= _LONGEST_NAME else f"{path[:_LONGEST_NAME]}..."


def _is_data_url(source: str | Path) -> bool:
    return isinstance(source, str) and source[:5].lower() == "data:"


def _open(source: str | Path | bytes, name: str, max_bytes: int) -> Image.Image:
    if isinstance(source, bytes):
        data = source
    elif _is_data_url(source):
        data = _decode_data_url(str(source), max_bytes)
    else:
        data = _read_file(Path(source), name, max_bytes)
    if not data:
        raise InputError(f"{name}: the image is empty")
    _check_bytes(len(data), name, max_bytes)
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _read_file(path: Path, name: str, max_bytes: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise InputError(f"{name}: not a file")
        _check_bytes(status.st_size, name, max_bytes)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: not readable: {reason}") from error


def _decode_data_url(url: str, max_bytes: int) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise InputError("data URL: expected data:image/...;base64,...")
    _check_bytes(len(body) // 4 * 3, "data URL", max_bytes)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"data URL: not base64: {error}") from error


def _check_bytes(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise CapacityError(
            f"{name}: {size:,} bytes are over the limit of {max_bytes:,}; shrink the image"
        )


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{name}: the image is empty ({width} x {height} pixels)")
    if width * height > max_pixels:
        raise CapacityError(
            f"{name}: {width} x {height} pixels are over the limit of {max_pixels:,}; "
            "shrink the image"
        )


def _as_rgb(image: Image.Image, name: str, file_format: str | None) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES or (
        image.mode == "I" and file_format in _SIXTEEN_BIT_FORMATS
    ):
        grey = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(
            f"{name}: grey values of mode {image.mode} have no fixed range; save the image with "
            "8 or 16 bits"
        )
    return image.convert("RGB")
