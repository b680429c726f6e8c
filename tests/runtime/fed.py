"""Texts of random ids, put into the slots of any engine."""

from collections.abc import Sequence

import numpy as np

from runtime.engine.protocol import Engine, FloatArray


def ids_of(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 700, length)


def feed(
    engine: Engine, slots: Sequence[int], texts: Sequence[np.ndarray], lengths: Sequence[int]
) -> FloatArray:
    """Append texts of one length to slots; logits of all their tokens."""
    hidden = np.stack([engine.embed(ids) for ids in texts])
    rows = np.arange(hidden.shape[0] * hidden.shape[1])
    return engine.step(slots, hidden, np.array(lengths, dtype=np.int64), rows)
