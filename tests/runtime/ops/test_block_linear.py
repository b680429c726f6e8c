"""BlockLinear's kernel against float64: every form of codes, few rows and many, odd sizes."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest

from tests.runtime.ops.op_graphs import Array, meaning, open_op, pack, rounded, run_op
from tests.stock_runtime import error

FORMS = [
    (144, 256, 32, 4, np.float32),
    (64, 128, 16, 4, np.float16),
    (50, 384, 64, 4, ml_dtypes.bfloat16),
    (200, 1408, 128, 4, ml_dtypes.bfloat16),
    (96, 512, 256, 4, np.float32),
    (96, 512, 128, 8, np.float32),
    (70, 320, 64, 8, np.float16),
    (50, 256, 128, 4, np.float32),
    (33, 432, 16, 8, ml_dtypes.bfloat16),
    (80, 320, 32, 8, np.float16),
]
EXACT = 2e-6
"""Sums of products that are exact, in fp32."""


def matrix(outputs: int, inputs: int, block: int, bits: int, base: type) -> tuple[Array, Array]:
    random = np.random.default_rng([outputs, inputs, block, bits])
    most = 1 << (bits - 1)
    codes = random.integers(-most, most, (outputs, inputs))
    scales: Array = random.uniform(1e-3, 2e-2, (outputs, inputs // block)).astype(base)
    return codes, scales


def opened(
    library: Path, codes: Array, scales: Array, block: int, bits: int
) -> ort.InferenceSession:
    return open_op(
        library,
        "kimivl.cpu",
        "BlockLinear",
        [np.zeros((1, 1), dtype=np.float32)],
        [np.float32],
        codes=pack(codes, bits, block),
        scales=scales,
        bits=bits,
        block_size=block,
    )


@pytest.mark.parametrize(("outputs", "inputs", "block", "bits", "base"), FORMS)
def test_the_kernel_rounds_rows_in_blocks_and_nothing_else(
    library: Path, outputs: int, inputs: int, block: int, bits: int, base: type
) -> None:
    codes, scales = matrix(outputs, inputs, block, bits, base)
    session = opened(library, codes, scales, block, bits)
    weights = meaning(codes, scales, block)
    for rows in (1, 2, 3, 4, 5, 12, 13, 40):
        x = np.random.default_rng(rows).standard_normal((rows, inputs), dtype=np.float32)
        (found,) = run_op(session, x)
        assert error(found, rounded(x, block) @ weights.T) < EXACT, rows


def test_rows_that_end_inside_a_block_meet_nothing_behind_their_end(library: Path) -> None:
    codes, scales = matrix(48, 128, 64, 4, np.float32)
    x = np.random.default_rng(5).standard_normal((3, 100), dtype=np.float32)
    whole = np.pad(x, ((0, 0), (0, 28)))
    (found,) = run_op(opened(library, codes, scales, 64, 4), x)
    assert error(found, rounded(whole, 64) @ meaning(codes, scales, 64).T) < EXACT


def test_a_row_of_zeros_gives_zeros(library: Path) -> None:
    codes, scales = matrix(32, 128, 32, 4, np.float32)
    (found,) = run_op(opened(library, codes, scales, 32, 4), np.zeros((2, 128), dtype=np.float32))
    assert not found.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 20])
def test_what_is_not_a_number_spoils_its_own_row_and_no_other(
    library: Path, value: float, rows: int
) -> None:
    codes, scales = matrix(32, 256, 128, 8, np.float32)
    x = np.random.default_rng(1).standard_normal((rows + 1, 256), dtype=np.float32)
    x[rows, 200] = value
    (found,) = run_op(opened(library, codes, scales, 128, 8), x)
    assert np.isfinite(found[:rows]).all()
    assert not np.isfinite(found[rows]).any()


def test_rows_of_another_width_are_refused_by_name(library: Path) -> None:
    codes, scales = matrix(32, 128, 32, 4, np.float32)
    session = opened(library, codes, scales, 32, 4)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.Fail, match="other widths"):
        run_op(session, np.zeros((1, 160), dtype=np.float32))


def test_no_rows_give_no_rows(library: Path) -> None:
    codes, scales = matrix(32, 128, 32, 4, np.float32)
    (found,) = run_op(opened(library, codes, scales, 32, 4), np.zeros((0, 128), dtype=np.float32))
    assert found.shape == (0, 32)
