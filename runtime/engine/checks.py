"""What every engine checks of a step and of what comes out of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CapacityError, NumericError
from ..limits import Limits
from ..prompt.patches import Grid
from .protocol import FloatArray, IntArray, NonFiniteRowsError


def check_grid(grid: Grid, limits: Limits) -> None:
    """Refuse an image that is larger than the engine was built for.

    Raises:
        CapacityError: it is.
    """
    if grid.h * grid.w > limits.max_patches:
        raise CapacityError(
            f"an image of {grid.h} x {grid.w} patches does not fit the limit of "
            f"{limits.max_patches}; shrink it or build with a larger --max-image-tokens"
        )


def check_step(slots: Sequence[int], hidden: FloatArray, lengths: IntArray, limits: Limits) -> None:
    """Refuse a step that the cache has no place for.

    Raises:
        CapacityError: there is no such slot, or a slot would grow over its capacity.
        ValueError: the arguments contradict each other.
    """
    if len(set(slots)) != len(slots) or not len(slots) == len(lengths) == hidden.shape[0]:
        raise ValueError(f"slots {slots}, lengths {lengths.shape}, hidden {hidden.shape}")
    if not all(0 <= slot < limits.max_slots for slot in slots):
        raise CapacityError(
            f"slots {list(slots)}: the engine has {limits.max_slots}; "
            "build with a larger --max-batch-size"
        )
    needed = int(lengths.max()) + hidden.shape[1]
    if needed > limits.max_tokens:
        raise CapacityError(
            f"{needed} tokens do not fit a cache of {limits.max_tokens}; shorten the "
            f"prompt or build with --max-kv-cache-capacity {needed}"
        )


def check_finite(values: FloatArray, where: str) -> None:
    """Refuse what is not a number.

    Raises:
        NumericError: some values are not finite.
    """
    if not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        raise NumericError(
            f"{count} of {values.size} values from {where} are not finite; the request was ended "
            "(run `tool.py verify` on the artifact)"
        )


def finite_rows(logits: FloatArray) -> NDArray[np.bool_]:
    """Tell which rows of logits (N, V) are finite throughout, (N,)."""
    is_finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(logits), axis=1)
    return is_finite


def check_rows(found: NDArray[Any], is_finite: NDArray[np.bool_], where: str) -> None:
    """Refuse the rows of a step that are not finite, and hand over the others.

    Args:
        found: logits (N, V) or ids (N,).
        is_finite: of which rows all logits are finite, (N,).
        where: what gave them.

    Raises:
        NonFiniteRowsError: some rows are not.
    """
    if not is_finite.all():
        count = int(np.count_nonzero(~is_finite))
        raise NonFiniteRowsError(
            f"{count} of {is_finite.size} rows of values from {where} are not finite; their "
            "requests were ended (run `tool.py verify` on the artifact)",
            found=found,
            is_finite=is_finite,
        )
