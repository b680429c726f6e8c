"""`route` in the interpreter against numpy."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.kernels.ops import router_op
from engines.kernels.specs import ExpertSizes

from . import oracle
from .interpreter import Arrays, Interpreter

# The sums differ from the oracle's by fp32 rounding, about 1e-7 of their terms.
TOLERANCE = 2e-6
POISON_ID, POISON = -77, np.float32(-1e30)

Array = NDArray[Any]


def run(
    interpreter: Interpreter,
    hidden: Array,
    weight: Array,
    bias: Array,
    *,
    k: int,
    scale: float = 2.446,
    normalize: bool = True,
) -> oracle.Routed:
    (num_tokens, width), num_experts = hidden.shape, len(bias)
    sizes = ExpertSizes(width=width, inner=8, num_experts=num_experts, num_chosen=k)
    outputs: Arrays = {
        "experts": np.full((num_tokens, k), POISON_ID, np.int64),
        "scores": np.full((num_tokens, k), POISON),
    }
    done = interpreter.run(
        router_op(sizes, scale=scale, normalize=normalize),
        {"hidden": hidden, "weight": weight, "bias": bias},
        outputs,
        num_tokens,
    )
    return oracle.Routed(done["experts"], done["scores"])


def draw(seed: int, num_tokens: int, width: int, num_experts: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((num_tokens, width)).astype(np.float32)
    weight = (rng.standard_normal((width, num_experts)) * width**-0.5).astype(np.float32)
    bias = (rng.standard_normal(num_experts) * 0.05).astype(np.float32)
    return hidden, weight, bias


@pytest.mark.parametrize(
    ("num_tokens", "width", "num_experts", "k", "normalize"),
    [(1, 200, 64, 6, True), (7, 33, 5, 2, True), (40, 130, 13, 3, False), (513, 17, 8, 8, True)],
)
def test_experts_and_scores_are_those_of_float64(
    interpreter: Interpreter, num_tokens: int, width: int, num_experts: int, k: int, normalize: bool
) -> None:
    hidden, weight, bias = draw(num_tokens, num_tokens, width, num_experts)
    done = run(interpreter, hidden, weight, bias, k=k, normalize=normalize)
    wanted = oracle.route(hidden, weight, bias, k=k, scale=2.446, normalize=normalize)
    assert np.array_equal(done.experts, wanted.experts)
    assert np.abs(done.scores / wanted.scores - 1).max() < TOLERANCE


@pytest.mark.parametrize("num_tokens", [3, 600])
def test_of_equal_experts_the_lower_number_comes_first(
    interpreter: Interpreter, num_tokens: int
) -> None:
    hidden = np.ones((num_tokens, 16), np.float32)
    weight = np.zeros((16, 9), np.float32)  # every score is 0.5
    bias = np.array([0, 0.25, 0, 0.25, 0, 0.25, 0, 0, 0], np.float32)
    done = run(interpreter, hidden, weight, bias, k=6, scale=1.0)
    assert np.array_equal(done.experts, np.tile([1, 3, 5, 0, 2, 4], (num_tokens, 1)))
    assert np.allclose(done.scores, 1 / 6, rtol=1e-6)


def test_the_bias_decides_the_choice_but_not_the_score(interpreter: Interpreter) -> None:
    hidden, weight, _ = draw(3, 4, 32, 8)
    bias = np.array([-10, 10, 0, 0, 0, 0, 0, 20], np.float32)
    done = run(interpreter, hidden, weight, bias, k=2, scale=1.0, normalize=False)
    assert np.array_equal(done.experts, np.tile([7, 1], (4, 1)))
    plain = 1 / (1 + np.exp(-(hidden.astype(np.float64) @ weight)))
    assert np.abs(done.scores / plain[:, [7, 1]] - 1).max() < TOLERANCE


@pytest.mark.parametrize("num_tokens", [4, 520])
def test_nan_chooses_different_experts_that_exist(
    interpreter: Interpreter, num_tokens: int
) -> None:
    hidden, weight, bias = draw(4, num_tokens, 24, 10)
    clean = run(interpreter, hidden, weight, bias, k=6)
    hidden[0], hidden[2, 5], bias[9] = np.nan, np.inf, np.nan
    done = run(interpreter, hidden, weight, bias, k=6)
    assert done.experts.min() >= 0
    assert done.experts.max() < 10
    assert all(len(set(row)) == 6 for row in done.experts.tolist())
    assert np.isnan(done.scores[0]).all()
    without_9 = [row for row in (1, 3) if 9 not in clean.experts[row]]
    assert np.array_equal(done.experts[without_9], clean.experts[without_9])
