import base64
import io
import os
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import CapacityError, InputError
from runtime.prompt.images import load_image


def save(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def make_png(width: int, height: int) -> bytes:
    """A PNG that says its size but holds hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


RED = Image.new("RGB", (3, 2), (255, 0, 0))


def test_every_kind_of_source_gives_the_same_image(tmp_path: Path) -> None:
    data = save(RED)
    path = tmp_path / "red.png"
    path.write_bytes(data)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    for source in (path, str(path), data, RED, url, url.replace("data:", "DATA:")):
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert loaded.size == (3, 2)
        assert loaded.tobytes() == RED.tobytes()


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "JPEG"])
def test_each_common_format_is_read(file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    pixel = load_image(save(RED, file_format, **options)).getpixel((1, 1))
    assert np.allclose(np.asarray(pixel), (255, 0, 0), atol=2)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 7), (100, 100, 100)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (1, 2, 3)),  # as in the reference, not blended with anything
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (100, 128, 128), (100, 100, 100)),
        ("I;16", 100 * 256 + 255, (100, 100, 100)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_each_mode_becomes_rgb(
    mode: str, color: int | tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    assert load_image(Image.new(mode, (2, 2), color)).getpixel((1, 1)) == expected


def test_a_palette_with_transparency_becomes_its_colours_without_a_warning() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    data = save(image, transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(data)
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (40, 50, 60)]


def test_a_file_with_16_bit_grey_is_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], dtype=np.uint16))
    for file_format in ("PNG", "TIFF"):
        loaded = np.asarray(load_image(save(grey, file_format)))
        assert loaded[0, :, 0].tolist() == [0, 0x12, 0xFF]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_grey_without_a_fixed_range_is_refused(mode: str) -> None:
    with pytest.raises(InputError, match=f"PIL image: grey values of mode {mode} have no fixed"):
        load_image(Image.new(mode, (2, 2), 300))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation: int) -> None:
    shown = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    turns = {1: 0, 3: 2, 6: 1, 8: 3, 2: 0, 4: 2, 5: 3, 7: 1}  # quarter turns to the left
    stored = np.rot90(shown, turns[orientation])
    if orientation in (2, 4, 5, 7):
        stored = stored[:, ::-1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(data))[:, :, 0], shown)


def test_the_first_picture_of_an_animation_is_taken() -> None:
    data = save(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (3, 2), (0, 0, 255))])
    assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "bytes: the image is empty"),
        (b"hello", "bytes: no image of a known format; use one of BMP, GIF, JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
        (save(RED)[:40], "bytes: no image of a known format"),
        (save(RED.resize((64, 64)))[:-30], "bytes: the image is broken"),
        (save(RED.resize((64, 64)), "JPEG")[:-200], "bytes: the image is broken"),
        (make_png(5, 5), "bytes: the image is broken"),
        (make_png(0, 5), "bytes: "),
    ],
)
def test_bytes_that_are_no_image_are_one_line(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_image(data)
    assert "\n" not in str(caught.value)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(InputError, match=r"PIL image: the image is empty \(0 x 5 pixels\)"):
        load_image(Image.new("RGB", (0, 5)))


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(CapacityError, match=r"9000 x 8000 pixels are over the limit of 64,000,000"):
        load_image(make_png(9000, 8000))
    with pytest.raises(CapacityError, match="10000 x 9500 pixels"):  # where PIL warns
        load_image(make_png(10000, 9500))
    with pytest.raises(CapacityError, match="over the limit of 64,000,000 pixels"):
        load_image(make_png(60000, 60000))
    with pytest.raises(CapacityError, match="3 x 2 pixels are over the limit of 5;"):
        load_image(RED, max_pixels=5)
    assert load_image(RED, max_pixels=6).size == (3, 2)


def test_too_large_a_file_is_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CapacityError, match=r"big\.png: 1,099,511,627,776 bytes are over"):
        load_image(path)
    data = save(RED)
    for source in (data, f"data:;base64,{base64.b64encode(data).decode()}"):
        with pytest.raises(CapacityError, match="bytes are over the limit of 20"):
            load_image(source, max_bytes=20)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64,!!!!", "data URL: not base64"),
        ("data:image/png;base64,QUJ", "data URL: not base64"),
        ("data:image/png;base64,é", "data URL: not base64"),
        ("data:image/png;base64,", "data URL: the image is empty"),
        ("data:image/png,abc", "data URL: expected data:image"),
        ("data:image/png;base64", "data URL: expected data:image"),
        ("data:image/png;base64,QUJD", "data URL: no image of a known format"),
    ],
)
def test_a_bad_data_url_is_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_image(url)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png: no such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="not a file"):
        load_image(tmp_path)
    with pytest.raises(InputError, match="not readable"):
        load_image("a\0b\n")
    with pytest.raises(InputError, match=r"AAAA\.\.\.: not readable: File name too long"):
        load_image("A" * 5000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a file"):
        load_image(tmp_path / "pipe")


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "JPEG"])
def test_damaged_bytes_give_an_image_or_an_error_of_ours(file_format: str) -> None:
    random = np.random.default_rng(11)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(random.integers(0, 256, (12, 17, 3), dtype=np.uint8))
    good = save(picture, file_format, exif=exif)
    refused = []
    for _ in range(150):
        data = np.frombuffer(good, dtype=np.uint8).copy()
        places = random.integers(0, min(len(data), 400), size=int(random.integers(1, 6)))
        data[places] = random.integers(0, 256, size=places.size)
        try:
            assert load_image(data.tobytes()).mode == "RGB"
        except (InputError, CapacityError) as error:
            refused.append(str(error))
    assert refused
    assert all(line.startswith("bytes: ") and "\n" not in line for line in refused)
