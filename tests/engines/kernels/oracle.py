"""What the four ops mean, in plain numpy and float64, token by token."""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Routed(NamedTuple):
    experts: Array
    scores: Array


class Sorted(NamedTuple):
    order: Array
    starts: Array


class Matrices(NamedTuple):
    codes: Array  # as stored; two int4 codes in a byte
    scale: Array | None
    values: Array  # (E, in, out) float64


def route(
    hidden: Array, weight: Array, bias: Array, *, k: int, scale: float, normalize: bool
) -> Routed:
    plain = 1 / (1 + np.exp(-(hidden.astype(np.float64) @ weight.astype(np.float64))))
    chosen = np.argsort(-(plain + bias.astype(np.float64)), axis=-1, kind="stable")[:, :k]
    scores = np.take_along_axis(plain, chosen, -1)
    if normalize:
        scores = scores / (scores.sum(-1, keepdims=True) + 1e-20)
    return Routed(chosen, scores * scale)


def sort_by_expert(experts: Array, num_experts: int) -> Sorted:
    flat = experts.reshape(-1)
    lists = [np.flatnonzero(flat == expert) for expert in range(num_experts)]
    return Sorted(np.concatenate(lists), np.cumsum([0, *map(len, lists)]))


def up(hidden: Array, experts: Array, gate: Array, lift: Array) -> Array:
    result = np.empty((*experts.shape, gate.shape[2]))
    for token, rank in np.ndindex(*experts.shape):
        row, expert = hidden[token].astype(np.float64), experts[token, rank]
        gated = row @ gate[expert]
        result[token, rank] = gated / (1 + np.exp(-gated)) * (row @ lift[expert])
    return result


def down(inner: Array, experts: Array, scores: Array, matrix: Array) -> Array:
    result = np.empty((*experts.shape, matrix.shape[2]))
    for token, rank in np.ndindex(*experts.shape):
        row = inner[token, rank].astype(np.float64)
        result[token, rank] = scores[token, rank] * (row @ matrix[experts[token, rank]])
    return result


def make_matrices(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    base: type[np.generic],
    codes: str,
    group: int,
) -> Matrices:
    """Draw matrices in a format; values are near 1 / sqrt(in) whatever the format is."""
    typical = shape[1] ** -0.5
    if codes in ("fp32", "fp16", "bf16"):
        stored = (rng.standard_normal(shape) * typical).astype(base)
        return Matrices(stored, None, stored.astype(np.float64))
    if codes == "fp8":
        stored, largest = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn), 1.0
    elif codes == "int8":
        stored, largest = rng.integers(-127, 128, shape).astype(np.int8), 73.0
    else:
        stored, largest = rng.integers(-8, 8, shape).astype(np.int8), 4.6
    step_shape = (shape[0], shape[1] // (group or shape[1]), shape[2])
    steps = (rng.uniform(0.5, 1.5, step_shape) * typical / largest).astype(base)
    values = stored.astype(np.float64) * np.repeat(
        steps.astype(np.float64), shape[1] // step_shape[1], axis=1
    )
    return Matrices(pack(stored) if codes == "int4" else stored, steps, values)


def pack(codes: Array) -> Array:
    """Put two codes in a byte along the last axis, the first one in the lower four bits."""
    pairs = codes.reshape(*codes.shape[:-1], -1, 2).astype(np.uint8)
    return ((pairs[..., 0] & 15) | (pairs[..., 1] << 4)).view(np.int8)
