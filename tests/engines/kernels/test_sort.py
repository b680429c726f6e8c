"""`sort_by_expert` in the interpreter against numpy."""

import numpy as np
import pytest

from engines.kernels.ops import sort_op
from engines.kernels.specs import ExpertSizes

from . import oracle
from .interpreter import Arrays, Interpreter

POISON = -99


def run(interpreter: Interpreter, experts: np.typing.NDArray[np.int64], num_experts: int) -> Arrays:
    num_tokens, k = experts.shape
    sizes = ExpertSizes(width=8, inner=8, num_experts=num_experts, num_chosen=k)
    outputs = {
        "order": np.full(num_tokens * k, POISON, np.int32),
        "starts": np.full(num_experts + 1, POISON, np.int32),
    }
    return interpreter.run(sort_op(sizes), {"experts": experts}, outputs, num_tokens)


@pytest.mark.parametrize(("num_tokens", "k"), [(1, 6), (40, 6), (5, 3), (700, 3)])
@pytest.mark.parametrize("routing", ["random", "one expert", "one each"])
def test_pairs_are_sorted_and_equal_ones_keep_their_order(
    interpreter: Interpreter, num_tokens: int, k: int, routing: str
) -> None:
    num_experts = 13
    rng = np.random.default_rng(num_tokens)
    experts = np.argsort(rng.random((num_tokens, num_experts)), axis=1)[:, :k]
    if routing == "one expert":
        experts = np.full((num_tokens, k), 11)
    if routing == "one each":
        experts = np.arange(num_tokens * k).reshape(num_tokens, k) % num_experts
    done = run(interpreter, experts, num_experts)
    wanted = oracle.sort_by_expert(experts, num_experts)
    assert np.array_equal(done["order"], wanted.order)
    assert np.array_equal(done["starts"], wanted.starts)


def test_a_number_that_is_no_expert_stays_inside(interpreter: Interpreter) -> None:
    experts = np.array([[-(2**40), 2], [2**40, 0]])
    done = run(interpreter, experts, 4)
    assert np.array_equal(done["order"], [0, 3, 1, 2])
    assert np.array_equal(done["starts"], [0, 2, 2, 3, 4])
