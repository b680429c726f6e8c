"""CachedAttention's kernel against float64: rows are rounded, queries meet what codes mean."""

from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest

from tests.runtime.ops.op_graphs import Array, open_op, run_op
from tests.stock_runtime import error

EPSILON = 1e-6
CLOSE = 1.5e-2
"""What rounding queries and weights to 8 bits may cost, of the largest value; mostly a third."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    heads: int = 4
    nope: int = 24
    rope: int = 16
    rank: int = 128
    value: int = 40
    group: int = 32


class Layer:
    """Random weights of one attention, and what it computes."""

    def __init__(self, sizes: Sizes, base: type = np.float32) -> None:
        random = np.random.default_rng([sizes.heads, sizes.rank, sizes.group])
        self.sizes = sizes
        self.scale = (sizes.nope + sizes.rope) ** -0.5
        self.norm = random.uniform(0.5, 1.5, sizes.rank).astype(np.float32)
        key = random.standard_normal((sizes.heads, sizes.nope, sizes.rank)) / sizes.rank**0.5
        value = random.standard_normal((sizes.heads, sizes.rank, sizes.value)) / sizes.rank**0.5
        self.key, self.value = key.astype(base), value.astype(base)
        half = np.arange(sizes.rope // 2)
        self.frequencies = (1000.0 ** (-half / half.size)).astype(np.float32)

    def open(self, library: Path) -> ort.InferenceSession:
        given: list[Array] = [np.zeros((1, 1, 1), dtype=np.float32)] * 2
        given += [np.zeros((1, 1, 1, 1), dtype=one) for one in (np.int8, np.float32, np.float32)]
        given += [np.zeros(1, dtype=np.int64)]
        outputs: list[type] = [np.float32, np.int8, np.float32, np.float32]
        return open_op(
            library,
            "kimivl.cpu",
            "CachedAttention",
            given,
            outputs,
            before=2,
            norm=self.norm,
            key=self.key,
            value=self.value,
            frequencies=self.frequencies,
            scale=self.scale,
            epsilon=EPSILON,
        )

    def turned(self, x: Array, positions: Array) -> Array:
        """Turn neighbouring pairs of (S, ..., rope)."""
        angles = positions[:, None] * self.frequencies.astype(np.float64)
        angles = angles.reshape(len(positions), *[1] * (x.ndim - 2), -1)
        a, b = x[..., 0::2], x[..., 1::2]
        both = a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)
        return np.stack(both, axis=-1).reshape(x.shape)

    def latent(self, rows: Array) -> Array:
        part = rows[:, : self.sizes.rank].astype(np.float64)
        found: Array = part / np.sqrt((part**2).mean(-1, keepdims=True) + EPSILON) * self.norm
        return found

    def attend(self, query: Array, codes: Array, keys: Array, scales: Array, length: int) -> Array:
        """(S, H * (nope + rope)) over a cache that has the new rows: (S, H * value)."""
        sizes, tokens = self.sizes, len(query)
        heads = query.reshape(tokens, sizes.heads, -1).astype(np.float64)
        latent = codes * np.repeat(scales.astype(np.float64), sizes.group, axis=1)
        turned = self.turned(heads[..., sizes.nope :], length + np.arange(tokens))
        absorbed = np.einsum("shd,hdr->shr", heads[..., : sizes.nope], self.key.astype(np.float64))
        found = np.empty((tokens, sizes.heads, sizes.value))
        for s in range(tokens):
            seen = length + s + 1
            scores = absorbed[s] @ latent[:seen].T + turned[s] @ keys[:seen].T.astype(np.float64)
            weights = np.exp(self.scale * (scores - scores.max(-1, keepdims=True)))
            mixed = weights / weights.sum(-1, keepdims=True) @ latent[:seen]
            found[s] = np.einsum("hr,hrv->hv", mixed, self.value.astype(np.float64))
        return found.reshape(tokens, -1)


def cache_of(layer: Layer, batch: int, capacity: int) -> list[Array]:
    """Codes, keys and scales of old tokens; garbage behind them, too."""
    random, sizes = np.random.default_rng(capacity), layer.sizes
    shape = (batch, 1, capacity)
    return [
        random.integers(-127, 128, (*shape, sizes.rank)).astype(np.int8),
        random.standard_normal((*shape, sizes.rope), dtype=np.float32),
        random.uniform(0.005, 0.02, (*shape, sizes.rank // sizes.group)).astype(np.float32),
    ]


def step(layer: Layer, batch: int, tokens: int) -> tuple[Array, Array]:
    random, sizes = np.random.default_rng([batch, tokens]), layer.sizes
    query = random.standard_normal((batch, tokens, sizes.heads * (sizes.nope + sizes.rope)))
    rows = random.standard_normal((batch, tokens, sizes.rank + sizes.rope))
    return query.astype(np.float32), rows.astype(np.float32)


def run(
    layer: Layer, library: Path, query: Array, rows: Array, cache: list[Array], lengths: list[int]
) -> list[Array]:
    given = [query, rows, *cache, np.array(lengths, dtype=np.int64)]
    return run_op(layer.open(library), *given)


SIZES = [
    Sizes(),
    Sizes(heads=1, rank=16, rope=8, group=16),
    Sizes(heads=5, rank=96, rope=8, group=32),
    Sizes(heads=17, rank=192, rope=40, group=64, nope=7, value=9),
    Sizes(heads=16, rank=512, rope=64, group=128, nope=128, value=128),
]
STEPS = [([0], 1), ([0], 5), ([63], 1), ([64], 2), ([70, 3, 41], 1), ([130, 0], 37), ([900], 1)]
LONGER = [([255], 3), ([520], 40)]
"""Across the ends of the kernels' blocks, and many rows that share them."""


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("lengths", "tokens"), STEPS + LONGER)
def test_new_tokens_see_all_old_ones_and_each_other_causally(
    library: Path, sizes: Sizes, lengths: list[int], tokens: int
) -> None:
    layer = Layer(sizes)
    cache = cache_of(layer, len(lengths), max(lengths) + tokens + 3)
    query, rows = step(layer, len(lengths), tokens)
    values, *written = run(layer, library, query, rows, cache, lengths)
    for slot, length in enumerate(lengths):
        codes, keys, scales = (one[slot, 0] for one in written)
        expected = layer.attend(query[slot], codes, keys, scales, length)
        assert error(values[slot], expected) < CLOSE


@pytest.mark.parametrize("base", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_new_rows_are_normalised_turned_rounded_and_written_behind_the_old_ones(
    library: Path, base: type
) -> None:
    layer, length, tokens = Layer(Sizes(), base), 7, 6
    cache = cache_of(layer, 1, 20)
    query, rows = step(layer, 1, tokens)
    _, *written = run(layer, library, query, rows, cache, [length])
    new = slice(length, length + tokens)
    for old, now in zip(cache, written, strict=True):
        assert (np.delete(now, np.r_[new], axis=2) == np.delete(old, np.r_[new], axis=2)).all()
    codes, keys, scales = (one[0, 0, new] for one in written)
    latent = layer.latent(rows[0])
    largest = np.abs(latent.reshape(tokens, -1, layer.sizes.group)).max(-1)
    np.testing.assert_allclose(scales, largest / 127, rtol=1e-5)
    steps = np.repeat(scales.astype(np.float64), layer.sizes.group, axis=1)
    assert (np.abs(latent / steps - codes) < 0.5 + 1e-3).all()
    turned = layer.turned(rows[0, :, layer.sizes.rank :].astype(np.float64), length + np.arange(6))
    np.testing.assert_allclose(keys, turned, rtol=1e-4, atol=1e-5)


def test_what_lies_behind_the_tokens_of_a_slot_is_not_read(library: Path) -> None:
    layer = Layer(Sizes())
    cache = cache_of(layer, 1, 40)
    query, rows = step(layer, 1, 3)
    first, *_ = run(layer, library, query, rows, cache, [20])
    cache[1][:, :, 23:], cache[2][:, :, 23:] = np.nan, np.inf
    again, *_ = run(layer, library, query, rows, cache, [20])
    assert (first == again).all()


def test_what_is_not_a_number_is_not_hidden_and_spoils_no_other_slot(library: Path) -> None:
    layer = Layer(Sizes())
    query, rows = step(layer, 2, 4)
    query[1, 2, 0] = rows[1, 3, 5] = np.nan
    values, *_ = run(layer, library, query, rows, cache_of(layer, 2, 30), [9, 11])
    assert np.isfinite(values[0]).all()
    assert np.isfinite(values[1, :2]).all()
    assert np.isnan(values[1, 2, : layer.sizes.value]).all()
    assert np.isnan(values[1, 3]).all()


def test_a_full_slot_is_refused(library: Path) -> None:
    layer = Layer(Sizes())
    query, rows = step(layer, 1, 3)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.Fail, match="no room"):
        run(layer, library, query, rows, cache_of(layer, 1, 10), [8])


@pytest.mark.parametrize("group", [32, 64])
def test_a_token_without_content_that_gets_most_of_the_weight_leaves_the_rest_as_it_is(
    library: Path, group: int
) -> None:
    layer, length = Layer(Sizes(heads=1, group=group)), 300
    cache = cache_of(layer, 1, length + 1)
    query, rows = step(layer, 1, 1)
    turned = layer.turned(query[0, :, layer.sizes.nope :].astype(np.float64), np.array([length]))
    cache[1][0, 0, 5] = turned[0] * 12 / layer.scale / (turned[0] ** 2).sum()
    cache[2][0, 0, 5] = 1e-6
    values, *written = run(layer, library, query, rows, cache, [length])
    codes, keys, scales = (one[0, 0] for one in written)
    assert error(values[0], layer.attend(query[0], codes, keys, scales, length)) < CLOSE


@pytest.mark.parametrize("code", [127, -128])
def test_sums_of_the_largest_codes_do_not_overflow(library: Path, code: int) -> None:
    layer, length = Layer(Sizes(heads=2, rank=512, group=128)), 600
    cache = cache_of(layer, 1, length + 1)
    cache[0][:], cache[1][:], cache[2][:] = code, 0, 0.01
    query, rows = step(layer, 1, 1)
    query[..., layer.sizes.nope :] = 0
    values, *written = run(layer, library, 1e-3 * query, rows, cache, [length])
    codes, keys, scales = (one[0, 0] for one in written)
    assert error(values[0], layer.attend(1e-3 * query[0], codes, keys, scales, length)) < CLOSE
