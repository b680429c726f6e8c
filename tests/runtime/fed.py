"""Texts of random ids, put into the slots of any engine, and what comes out of two of them."""

from collections.abc import Sequence

import numpy as np

from runtime.engine.protocol import Engine, FloatArray

CUDA_TOLERANCE = 2e-5
"""Of the largest value: both engines compute in fp32, over caches of other lengths."""
PLANS_TOLERANCE = 2e-3
"""Of the largest value: TensorRT's double rounds hidden states and cache to fp16 between plans."""


def ids_of(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 700, length)


def feed(
    engine: Engine, slots: Sequence[int], texts: Sequence[np.ndarray], lengths: Sequence[int]
) -> FloatArray:
    """Append texts of one length to slots; logits of all their tokens."""
    hidden = np.stack([engine.embed(ids) for ids in texts])
    rows = np.arange(hidden.shape[0] * hidden.shape[1])
    return engine.step(slots, hidden, np.array(lengths, dtype=np.int64), rows)


def check_close(found: FloatArray, expected: FloatArray, tolerance: float) -> None:
    """Fail where two results differ by more than a part of the largest value."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
