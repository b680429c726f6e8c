"""Steps cut into pieces, and numbers in TensorRT's types."""

import ml_dtypes
import numpy as np
import pytest

from runtime.engine.gpu.numbers import from_stored, to_stored
from runtime.engine.gpu.pieces import Piece, cut_step


def cut(slots: list[int], num_new: int, rows: list[int], max_tokens: int) -> list[Piece]:
    return list(cut_step(slots, num_new, np.array(rows, dtype=np.int64), max_tokens))


def test_neighbours_in_rising_order_stay_together() -> None:
    pieces = cut([2, 3, 5, 4, 0, 1], 1, [], 8)
    assert [(one.first_slot, one.batch) for one in pieces] == [
        (2, slice(0, 2)),
        (5, slice(2, 3)),
        (4, slice(3, 4)),
        (0, slice(4, 6)),
    ]


def test_tokens_come_in_order_and_none_twice() -> None:
    pieces = cut([1], 7, [], 3)
    assert [one.tokens for one in pieces] == [slice(0, 3), slice(3, 6), slice(6, 7)]


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("slots", [[0, 1, 2], [2, 0, 1], [4, 2, 0]])
def test_each_wanted_token_is_found_in_one_piece(slots: list[int], max_tokens: int) -> None:
    num_new, rows = 5, [14, 0, 7, 7, 3]
    tokens = np.arange(len(slots) * num_new).reshape(len(slots), num_new)
    found = np.full(len(rows), -1)
    for piece in cut(slots, num_new, rows, max_tokens):
        assert slots[piece.batch] == list(
            range(piece.first_slot, piece.first_slot + piece.batch.stop - piece.batch.start)
        )
        given = tokens[piece.batch, piece.tokens].reshape(-1)
        assert (found[piece.places] == -1).all()
        found[piece.places] = given[piece.rows]
    assert found.tolist() == rows


def test_bf16_is_rounded_to_nearest_even() -> None:
    values = np.random.default_rng(0).standard_normal(10_000, dtype=np.float32) * 1e3
    ties = np.array([0x3F808000, 0x3F818000, 0x80000000], dtype=np.uint32).view(np.float32)
    values = np.concatenate([values, ties, np.array([np.inf, -np.inf], dtype=np.float32)])
    expected = values.astype(ml_dtypes.bfloat16)
    stored = to_stored(values, "BF16")
    np.testing.assert_array_equal(stored, expected.view(np.uint16))
    np.testing.assert_array_equal(from_stored(stored, "BF16"), expected.astype(np.float32))


@pytest.mark.parametrize("sign", [1, -1])
def test_nan_stays_nan_in_bf16(sign: int) -> None:
    nan = np.array([0x7F800001, 0x7FFFFFFF], dtype=np.uint32) | (0x80000000 if sign < 0 else 0)
    stored = to_stored(nan.astype(np.uint32).view(np.float32), "BF16")
    assert np.isnan(from_stored(stored, "BF16")).all()


@pytest.mark.parametrize(("dtype", "kind"), [("FLOAT", "f4"), ("HALF", "f2"), ("INT64", "i8")])
def test_other_types_are_numpys(dtype: str, kind: str) -> None:
    values = np.arange(6).reshape(2, 3).T  # not contiguous
    stored = to_stored(values, dtype)
    assert stored.dtype == np.dtype(kind)
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(from_stored(stored, dtype), values)
