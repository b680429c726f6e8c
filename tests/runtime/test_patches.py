import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.errors import CheckpointError, InputError
from runtime.prompt.patches import Grid, ImageRule, max_patches, position_weights
from tests.doubles import write_small_text_files
from tests.oracles.image_processor import ImageOracle

SAME_PIXELS = 1e-6  # both compute (x / 255 - 0.5) / 0.5 in float32, in another order
# PIL (the original processor) and torchvision (the oracle) use weights of other precision and round
# to 8 bits after each of two passes, along rows and along columns: seldom one grey level (2 / 255)
# apart, and two at the very most.
ONE_LEVEL = 2 / 255 + 1e-6
TWO_LEVELS = 4 / 255 + 1e-6


def make_rule(limit: int = 4096, **changes: object) -> ImageRule:
    fields: dict[str, Any] = {"patch_size": 14, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return ImageRule(**{**fields, "in_token_limit": limit, **changes})


def make_noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# The table of the model's reference page: width, height, tokens at 4096 and at 16384.
PUBLISHED = [
    (20, 20, 1, 1),
    (224, 224, 64, 64),
    (640, 480, 414, 414),
    (896, 896, 1024, 1024),
    (897, 897, 1089, 1089),
    (1024, 768, 1036, 1036),
    (1280, 720, 1075, 1196),
    (1920, 1080, 1032, 2691),
    (1792, 1792, 1024, 4096),
    (3840, 2160, 1032, 4214),
]


@pytest.mark.parametrize(("width", "height", "at_4096", "at_16384"), PUBLISHED)
def test_token_counts_are_the_published_ones(
    width: int, height: int, at_4096: int, at_16384: int
) -> None:
    for limit, tokens in ((4096, at_4096), (16384, at_16384)):
        grid = make_rule(limit).grid(width, height)
        assert grid.h * grid.w == 4 * tokens


@pytest.mark.parametrize("limit", [4096, 16384])
def test_grids_equal_the_reference_on_random_sizes(limit: int) -> None:
    oracle = ImageOracle(limit)
    rule = make_rule(limit)
    random = np.random.default_rng(7)
    compared = 0
    for width, height in np.exp(random.uniform(0, np.log(7000), (400, 2))).astype(int).tolist():
        expected = oracle.grid(width, height)
        if max(expected) < 512:
            assert rule.grid(width, height) == expected, (width, height)
            compared += 1
    assert compared >= 380


@pytest.mark.parametrize(("width", "height"), [(1, 1), (13, 50), (28, 28), (97, 31), (140, 84)])
def test_pixels_equal_the_reference_without_resize(width: int, height: int) -> None:
    image = make_noise(width, height)
    patched = make_rule().patchify(image)
    expected = ImageOracle(4096).patches(image)
    np.testing.assert_allclose(patched.patches, expected, rtol=0, atol=SAME_PIXELS)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (151, 470), (1000, 90)])
def test_pixels_equal_the_reference_with_resize_but_for_rounding(width: int, height: int) -> None:
    smooth = make_noise(9, 9).resize((width, height), resample=Image.Resampling.BILINEAR)
    patched = make_rule(64).patchify(smooth)
    expected = ImageOracle(64).patches(smooth)
    assert patched.patches.shape == expected.shape
    np.testing.assert_allclose(patched.patches, expected, rtol=0, atol=TWO_LEVELS)
    difference = np.abs(patched.patches - expected)
    assert np.mean(difference > SAME_PIXELS) < 0.05
    assert np.mean(difference > ONE_LEVEL) < 0.001


def test_a_patch_is_flattened_as_channel_row_column_and_padded_with_black() -> None:
    image = Image.new("RGB", (30, 15), (255, 255, 255))
    image.putpixel((14 + 3, 5), (51, 102, 204))
    patched = make_rule().patchify(image)
    assert patched.grid == Grid(h=2, w=4)
    assert patched.num_tokens == 2
    assert patched.patches.dtype == np.float32
    patch = patched.patches[0, 1].reshape(3, 14, 14)
    np.testing.assert_allclose(patch[:, 5, 3], [-0.6, -0.2, 0.6], atol=1e-6)
    assert (patched.patches[1, 0].reshape(3, 14, 14)[:, 1:] == -1).all()
    assert (patched.patches[0, 2].reshape(3, 14, 14)[:, :, 2:] == -1).all()
    assert (patched.patches[:, 3] == -1).all()


def test_mean_and_deviation_belong_to_their_channels() -> None:
    rule = make_rule(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    patch = rule.patchify(Image.new("RGB", (1, 1), (255, 0, 0))).patches[0, 0].reshape(3, 14, 14)
    assert patch[:, 0, 0].tolist() == [1.0, -1.0, -4.0]


@pytest.mark.parametrize("size", [(7141, 20), (20, 7141), (7168, 14), (100000, 5)])
def test_a_side_of_512_patches_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="a side must stay under 512"):
        make_rule().grid(*size)


def test_a_side_of_510_patches_is_taken() -> None:
    assert make_rule().grid(7140, 20) == Grid(h=2, w=510)


def test_an_image_that_is_not_rgb_is_a_bug() -> None:
    with pytest.raises(ValueError, match="mode L"):
        make_rule().patchify(Image.new("L", (5, 5)))


@pytest.mark.parametrize(("limit", "most"), [(4096, 5352), (16384, 17856)])
def test_the_largest_grid_is_the_published_one_and_found_fast(limit: int, most: int) -> None:
    start = time.perf_counter()
    assert max_patches(make_rule(limit)) == most
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("limit", [5, 64, 1024, 4096])
def test_the_largest_grid_equals_that_of_all_sizes(limit: int) -> None:
    # Patches of 2 pixels: the 1023 x 1023 sizes in view reach grids of 512.
    rule = make_rule(limit, patch_size=2)
    sizes = np.arange(1, 1024)
    widths, heights = np.meshgrid(sizes, sizes)
    num_patches = (widths // 2) * (heights // 2)
    scales = np.sqrt(limit / np.maximum(num_patches, limit))
    rows = -(-np.maximum(1, (heights * scales).astype(int)) // 4) * 2
    columns = -(-np.maximum(1, (widths * scales).astype(int)) // 4) * 2
    fits = (rows < 512) & (columns < 512)
    assert max_patches(rule) == (rows * columns)[fits].max()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 13, 64, 101])
@pytest.mark.parametrize("table_size", [1, 4, 8, 64])
def test_position_weights_equal_bicubic_interpolation(size: int, table_size: int) -> None:
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(size).standard_normal((table_size, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(table.T.copy())[None, :, None],
        size=(1, size),
        mode="bicubic",
        align_corners=False,
    )[0, :, 0].numpy()
    weights = position_weights(size, table_size)
    assert weights.dtype == np.float32
    np.testing.assert_allclose((weights @ table).T, expected, rtol=0, atol=5e-5)


def test_two_axes_of_position_weights_resize_a_table() -> None:
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(table)[None, None], size=(5, 11), mode="bicubic", align_corners=False
    )[0, 0].numpy()
    resized = position_weights(5, 8) @ table @ position_weights(11, 6).T
    np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-5)


def test_position_weights_of_equal_sizes_are_the_identity() -> None:
    np.testing.assert_array_equal(position_weights(64, 64), np.eye(64, dtype=np.float32))


def test_a_rule_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    rule = ImageRule.load(write_small_text_files(tmp_path, in_token_limit=77))
    assert rule == make_rule(77)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad_input": False}, "pad_input: only True is implemented, found False"),
        ({"pad_input": None}, "pad_input: only True is implemented, which is missing"),
        ({"in_token_limit": None}, "in_token_limit: expected an integer"),
        ({"patch_size": "14"}, "patch_size: expected an integer"),
        ({"image_mean": None}, "image_mean: expected three numbers"),
        ({"image_mean": [0.5, 0.5]}, "image_mean: expected three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std: a channel is divided by zero"),
        ({"merge_kernel_size": [4, 4]}, "merge_kernel_size: only"),
        ({"do_center_crop": True}, "do_center_crop: unknown field"),
    ],
)
def test_a_rule_that_is_not_implemented_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_small_text_files(tmp_path) / "preprocessor_config.json"
    fields = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({name: v for name, v in fields.items() if v is not None}))
    with pytest.raises(CheckpointError, match=message):
        ImageRule.load(tmp_path)


def test_fields_without_effect_are_taken(tmp_path: Path) -> None:
    path = write_small_text_files(tmp_path) / "preprocessor_config.json"
    inert = {"auto_map": {}, "image_processor_type": "X", "merge_kernel_size": [2, 2]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **inert}))
    assert ImageRule.load(tmp_path) == make_rule(64)
