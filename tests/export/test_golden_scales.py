"""Scales and rounded values against numbers that nvidia-modelopt 0.47 gave for the same matrices.

`golden/modelopt.json` holds them; `benchmarks/modelopt_scales.py` made it. How the two differ:

* Scales: modelopt keeps the largest size (amax) and divides by 127, 7 or 448 where it needs a
  scale, in fp32; so do we, and then round once to the recipe's base type, before codes are made.
* Values: modelopt multiplies by 127 / amax and divides again; we divide by the scale and multiply
  again, as QuantizeLinear does. Codes are equal; values differ by the last bits of fp32.
* int8 and int4: neither reaches -128 or -8 with a symmetric scale; modelopt's range includes them.
* Zeros: modelopt gives a column of zeros a scale of zero, a block of NVFP4 the scale 1; ours are
  2^-24 and 0. All mean zeros.
* Tiny columns: our smallest scale is 2^-24, the smallest number of fp16, modelopt has no smallest
  one. Below an amax of 127 x 2^-24 = 8e-6 ours is coarser.
* NVFP4: the same two levels, and 2^-9 as the smallest FP8 scale of a block that is not zero.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.modelopt_scales import (
    BASES,
    FORMS,
    KINDS,
    SMALL,
    WHOLE_TENSOR,
    Array,
    Rounded,
    digest,
    other_codes,
    our_rounding,
    seeded_matrix,
)
from calibration.scales.rounding import round_to_fp4

Mask = NDArray[np.bool_]

GOLDEN = Path(__file__).parent / "golden" / "modelopt.json"
LAST_BITS = 4 * 2.0**-24
"""Three roundings of fp32 on their side, two on ours."""
SMALLEST_SCALE = 2.0**-24
EIGHT_AND_FOUR_BITS = [form for form in (*FORMS, *WHOLE_TENSOR) if form != "nvfp4/16"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(GOLDEN.read_text())
    return content


def exact(text: str, *shape: int) -> Array:
    """Hexadecimal floats, as fp32."""
    numbers = [float.fromhex(word) for word in text.split()]
    return np.array(numbers, dtype=np.float32).reshape(shape)


def pinned(golden: dict[str, Any], kind: str, form: str) -> Rounded:
    """What modelopt gave."""
    found = golden["matrices"][kind][form]
    values = np.frombuffer(base64.b64decode(found["values"]), dtype="<f4")
    return Rounded(
        scale=exact(found["scale"], *(() if form in WHOLE_TENSOR else (-1, SMALL[1]))),
        values=values.reshape(SMALL).astype(np.float32),
        whole=exact(found["whole"]) if "whole" in found else None,
    )


def is_tiny(scale: Array) -> Mask:
    """Where our smallest scale takes the place of a smaller one, or of zero."""
    return np.asarray(scale < SMALLEST_SCALE)


def over_inputs(mask: Mask) -> Mask:
    """A mask of groups (groups, N), or (), over all values (K, N)."""
    rows = np.atleast_2d(mask)
    return np.broadcast_to(np.repeat(rows, SMALL[0] // len(rows), axis=0), SMALL)


def test_the_file_is_modelopts_and_its_matrices_are_ours(golden: dict[str, Any]) -> None:
    assert golden["modelopt"] == "0.47.0"
    assert GOLDEN.stat().st_size <= 100_000
    assert set(golden["matrices"]) == set(KINDS)
    for kind in KINDS:
        assert golden["matrices"][kind]["sha256"] == digest(seeded_matrix(kind, *SMALL))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", EIGHT_AND_FOUR_BITS)
def test_fp32_scales_are_modelopts_to_the_last_bit(
    golden: dict[str, Any], form: str, kind: str
) -> None:
    ours = our_rounding(seeded_matrix(kind, *SMALL), form, torch.float32)
    theirs = pinned(golden, kind, form)
    tiny = is_tiny(theirs.scale)
    assert tiny.any() == (kind == "outlier" and form not in WHOLE_TENSOR)
    np.testing.assert_array_equal(ours.scale[~tiny], theirs.scale[~tiny])
    assert (ours.scale[tiny] == SMALLEST_SCALE).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", EIGHT_AND_FOUR_BITS)
def test_codes_are_modelopts_and_values_differ_in_the_last_bits(
    golden: dict[str, Any], form: str, kind: str
) -> None:
    matrix = seeded_matrix(kind, *SMALL)
    ours, theirs = our_rounding(matrix, form, torch.float32), pinned(golden, kind, form)
    same = ~over_inputs(is_tiny(theirs.scale))
    assert not other_codes(ours, theirs)[same].any()
    np.testing.assert_allclose(ours.values[same], theirs.values[same], rtol=LAST_BITS, atol=0)
    lost = np.abs(ours.values - matrix)
    assert (lost <= SMALLEST_SCALE / 2 + np.abs(matrix) * 2.0**-4)[~same].all()  # E4M3: 3 bits


@pytest.mark.parametrize("base", BASES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", EIGHT_AND_FOUR_BITS)
def test_stored_scales_are_modelopts_rounded_once(
    golden: dict[str, Any], form: str, kind: str, base: torch.dtype
) -> None:
    ours, theirs = our_rounding(seeded_matrix(kind, *SMALL), form, base), pinned(golden, kind, form)
    expected = torch.tensor(np.maximum(theirs.scale, np.float32(SMALLEST_SCALE))).to(base)
    np.testing.assert_array_equal(ours.scale, expected.float().numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_nvfp4_is_modelopts_to_the_last_bit(golden: dict[str, Any], kind: str) -> None:
    ours = our_rounding(seeded_matrix(kind, *SMALL), "nvfp4/16", torch.bfloat16)
    theirs = pinned(golden, kind, "nvfp4/16")
    assert ours.whole == theirs.whole
    amax = exact(golden["matrices"][kind]["nvfp4/16"]["amax"], -1, SMALL[1])
    np.testing.assert_array_equal(ours.scale[amax > 0], theirs.scale[amax > 0])
    assert (ours.scale[amax == 0] == 0).all()
    assert (theirs.scale[amax == 0] == 1).all()
    np.testing.assert_array_equal(ours.values, theirs.values)
    assert (kind == "outlier") == bool((amax == 0).any())


@pytest.mark.parametrize("kind", KINDS)
def test_nvfp4_activations_are_modelopts_to_the_last_bit(golden: dict[str, Any], kind: str) -> None:
    """Channels are the last axis there."""
    theirs = pinned(golden, kind, "nvfp4/16")
    assert theirs.whole is not None
    rows = torch.from_numpy(seeded_matrix(kind, *SMALL).T.copy())
    found = round_to_fp4(rows, torch.from_numpy(theirs.whole))
    np.testing.assert_array_equal(found.numpy().T, theirs.values)


def test_bf16_scales_lose_next_to_nothing(golden: dict[str, Any]) -> None:
    """Mean square errors against modelopt's; 2 % on so few values, 0.5 % on large matrices."""
    for kind in ("normal", "heavy"):
        matrix = seeded_matrix(kind, *SMALL).astype(np.float64)
        for form in FORMS:
            ours = our_rounding(matrix.astype(np.float32), form, torch.bfloat16)
            theirs = pinned(golden, kind, form)
            lost, wanted = (np.square(one.values - matrix).mean() for one in (ours, theirs))
            assert lost < 1.02 * wanted
