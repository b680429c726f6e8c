"""BlockExperts' kernel against float64, with the rounding before both products written out."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest

from tests.runtime.ops.op_graphs import Array, meaning, open_op, pack, rounded, run_op
from tests.stock_runtime import error

WIDTH, INNER, EXPERTS, SHARED, CHOSEN = 256, 128, 7, 2, 3
EXACT = 3e-4
"""A value that lies between two codes may be rounded either way, in a few of all places."""


class Stack:
    """Random experts."""

    def __init__(self, bits: int, block: int) -> None:
        random = np.random.default_rng([bits, block])
        most, count = 1 << (bits - 1), EXPERTS + SHARED
        self.bits, self.block = bits, block
        self.up = random.integers(-most, most, (count, 2 * INNER, WIDTH))
        self.down = random.integers(-most, most, (count, WIDTH, INNER))
        self.up_scales = self.scales(random, (count, 2 * INNER, WIDTH // block))
        self.down_scales = self.scales(random, (count, WIDTH, INNER // block))

    def scales(self, random: np.random.Generator, shape: tuple[int, ...]) -> Array:
        most = 1 << (self.bits - 1)
        return (random.uniform(0.05, 0.2, shape) / most).astype(ml_dtypes.bfloat16)

    def packed(self, codes: Array) -> Array:
        rows = pack(codes.reshape(-1, codes.shape[-1]), self.bits, self.block)
        return rows.reshape(*codes.shape[:2], -1)

    def run(self, x: Array, experts: Array, scores: Array) -> Array:
        """What the op means."""
        y = np.zeros(x.shape)
        for token in range(len(x)):
            chosen = [*zip(experts[token], scores[token], strict=True)]
            chosen += [(EXPERTS + shared, 1.0) for shared in range(SHARED)]
            for expert, score in chosen:
                up = meaning(self.up[expert], self.up_scales[expert], self.block)
                both = rounded(x[token : token + 1], self.block) @ up.T
                gate, lifted = both[0, 0::2], both[0, 1::2]
                inner = (gate / (1 + np.exp(-gate)) * lifted).astype(np.float32)
                down = meaning(self.down[expert], self.down_scales[expert], self.block)
                y[token] += float(score) * (rounded(inner[None], self.block) @ down.T)[0]
        return y


def opened(library: Path, stack: Stack) -> ort.InferenceSession:
    given = [np.zeros((1, 1), dtype=kind) for kind in (np.float32, np.int64, np.float32)]
    return open_op(
        library,
        "kimivl.cpu",
        "BlockExperts",
        given,
        [np.float32],
        up=stack.packed(stack.up),
        up_scales=stack.up_scales,
        down=stack.packed(stack.down),
        down_scales=stack.down_scales,
        bits=stack.bits,
        block_size=stack.block,
        num_shared=SHARED,
    )


def routed(rows: int) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(rows)
    x = random.standard_normal((rows, WIDTH), dtype=np.float32)
    experts = np.stack([random.permutation(EXPERTS)[:CHOSEN] for _ in range(rows)])
    return x, experts.astype(np.int64), random.random((rows, CHOSEN), dtype=np.float32)


@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 128), (8, 128), (8, 16)])
@pytest.mark.parametrize("rows", [1, 2, 9, 40])
def test_each_token_gets_its_chosen_experts_by_score_and_all_shared_ones(
    library: Path, bits: int, block: int, rows: int
) -> None:
    stack = Stack(bits, block)
    given = routed(rows)
    (found,) = run_op(opened(library, stack), *given)
    assert error(found, stack.run(*given)) < EXACT


def test_all_tokens_may_choose_the_same_experts(library: Path) -> None:
    stack = Stack(4, 64)
    x, experts, scores = routed(30)
    experts[:] = [5, 0, 2]
    (found,) = run_op(opened(library, stack), x, experts, scores)
    assert error(found, stack.run(x, experts, scores)) < EXACT


def test_a_call_is_not_touched_by_the_one_before(library: Path) -> None:
    session = opened(library, Stack(4, 64))
    small, large = routed(1), routed(33)
    (first,) = run_op(session, *small)
    run_op(session, *large)
    (again,) = run_op(session, *small)
    assert (first == again).all()


def test_an_expert_that_does_not_exist_is_refused(library: Path) -> None:
    x, experts, scores = routed(2)
    experts[1, 0] = EXPERTS  # a shared one cannot be chosen either
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.Fail, match="no such expert"):
        run_op(opened(library, Stack(4, 64)), x, experts, scores)


def test_a_token_that_is_not_a_number_spoils_no_other(library: Path) -> None:
    x, experts, scores = routed(20)
    x[7, 3] = np.nan
    (found,) = run_op(opened(library, Stack(4, 64)), x, experts, scores)
    assert np.isnan(found[7]).all()
    assert np.isfinite(np.delete(found, 7, axis=0)).all()
