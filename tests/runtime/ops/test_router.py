"""Router's kernel against the formula in float64; ties go to the lowest expert."""

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.ops.op_graphs import Array, open_op, run_op
from tests.stock_runtime import error

WIDTH, EXPERTS, K, SCALE = 600, 20, 4, 2.5


def run(
    library: Path, x: Array, weight: Array, bias: Array, *, normalize: int
) -> tuple[Array, Array]:
    session = open_op(
        library,
        "kimivl",
        "Router",
        [x],
        [np.int64, np.float32],
        weight=weight,
        bias=bias,
        k=K,
        scale=SCALE,
        normalize=normalize,
    )
    experts, scores = run_op(session, x)
    return experts, scores


@pytest.mark.parametrize("rows", [1, 3, 50])
@pytest.mark.parametrize("normalize", [0, 1])
def test_experts_are_chosen_by_score_plus_bias_and_weighed_by_score(
    library: Path, rows: int, normalize: int
) -> None:
    random = np.random.default_rng(rows)
    x = random.standard_normal((rows, WIDTH), dtype=np.float32)
    weight = random.standard_normal((WIDTH, EXPERTS), dtype=np.float32) / 20
    bias = random.standard_normal(EXPERTS).astype(np.float32) / 4
    experts, scores = run(library, x, weight, bias, normalize=normalize)
    plain = 1 / (1 + np.exp(-(x.astype(np.float64) @ weight)))
    expected = np.argsort(-(plain + bias), axis=1)[:, :K]
    assert (experts == expected).all()
    chosen = np.take_along_axis(plain, expected, axis=1)
    shares = chosen / chosen.sum(axis=1, keepdims=True) if normalize else chosen
    assert error(scores, shares * SCALE) < 1e-5


def test_equal_scores_choose_the_lowest_experts(library: Path) -> None:
    x = np.ones((2, WIDTH), dtype=np.float32)
    weight = np.zeros((WIDTH, EXPERTS), dtype=np.float32)
    experts, _ = run(library, x, weight, np.zeros(EXPERTS, dtype=np.float32), normalize=1)
    assert (experts == np.arange(K)).all()
