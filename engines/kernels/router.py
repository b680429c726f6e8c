"""Choose experts: the neutral op `Router` as one kernel, all of it in fp32.

Source: the body of `Router` in `export.graph.functions`.
"""

import triton.language as tl

from .triton_api import kernel


@kernel
def route(
    hidden: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    num_tokens: tl.tensor,
    experts: tl.tensor,
    scores: tl.tensor,
    WIDTH: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    SCALE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_CHOSEN: tl.constexpr,
) -> None:
    """Write the chosen experts int64 (N, K) and their scores fp32 (N, K).

    `hidden` is (N, C), `weight` (C, E), `bias` (E), all fp32. A program takes BLOCK_TOKENS tokens.
    Of equal experts the lower number comes first. A NaN is below everything else, so that K
    different experts are chosen whatever the numbers are.
    """
    rows = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    columns = tl.arange(0, BLOCK_EXPERTS)
    if BLOCK_TOKENS == 1:
        logits = _logits_of_one(hidden, weight, WIDTH, NUM_EXPERTS, BLOCK_WIDTH, BLOCK_EXPERTS)
    else:
        logits = _logits(
            hidden, weight, rows, num_tokens, WIDTH, NUM_EXPERTS, BLOCK_WIDTH, BLOCK_EXPERTS
        )
    plain = 1.0 / (1.0 + tl.exp(-logits))
    biased = plain + tl.load(bias + columns, mask=columns < NUM_EXPERTS, other=0.0)[None, :]
    keys = tl.where(columns[None, :] < NUM_EXPERTS, _ordered(biased), -2147483648)
    chosen, shares = _choose(keys, plain, NUM_CHOSEN, BLOCK_EXPERTS, BLOCK_CHOSEN)
    if NORMALIZE:
        shares = shares / (tl.sum(shares, axis=1) + 1e-20)[:, None]
    ranks = tl.arange(0, BLOCK_CHOSEN)[None, :]
    places = rows[:, None] * NUM_CHOSEN + ranks
    is_there = (rows < num_tokens)[:, None] & (ranks < NUM_CHOSEN)
    tl.store(experts + places, chosen.to(tl.int64), mask=is_there)
    tl.store(scores + places, shares * SCALE, mask=is_there)


@kernel
def _choose(
    keys: tl.tensor,
    plain: tl.tensor,
    NUM_CHOSEN: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_CHOSEN: tl.constexpr,
) -> tl.tensor:
    """Find the experts with the largest keys, and their plain scores, in falling order."""
    columns = tl.arange(0, BLOCK_EXPERTS)[None, :]
    ranks = tl.arange(0, BLOCK_CHOSEN)[None, :]
    chosen = tl.zeros((keys.shape[0], BLOCK_CHOSEN), tl.int32)
    shares = tl.zeros((keys.shape[0], BLOCK_CHOSEN), tl.float32)
    for rank in tl.static_range(NUM_CHOSEN):
        best = tl.max(keys, axis=1)
        expert = tl.min(tl.where(keys == best[:, None], columns, BLOCK_EXPERTS), axis=1)
        is_taken = columns == expert[:, None]
        share = tl.sum(tl.where(is_taken, plain, 0.0), axis=1)
        chosen = tl.where(ranks == rank, expert[:, None], chosen)
        shares = tl.where(ranks == rank, share[:, None], shares)
        keys = tl.where(is_taken, -2147483648, keys)
    return chosen, shares


@kernel
def _ordered(values: tl.tensor) -> tl.tensor:
    """Turn fp32 into int32 of the same order; NaN is the lowest but one, and there is no -0."""
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(values == values, bits ^ ((bits >> 31) & 0x7FFFFFFF), -2147483647)


@kernel
def _logits_of_one(
    hidden: tl.tensor,
    weight: tl.tensor,
    WIDTH: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
) -> tl.tensor:
    """Multiply the row of this program: (1, BLOCK_EXPERTS). Sums over the width come last."""
    columns = tl.arange(0, BLOCK_EXPERTS)[None, :]
    total = tl.zeros((BLOCK_WIDTH, BLOCK_EXPERTS), tl.float32)
    for start in tl.range(0, WIDTH, BLOCK_WIDTH, num_stages=3):
        inner = start + tl.arange(0, BLOCK_WIDTH)
        row = tl.load(hidden + tl.program_id(1) * WIDTH + inner, mask=inner < WIDTH, other=0.0)
        inside = (inner < WIDTH)[:, None] & (columns < NUM_EXPERTS)
        block = tl.load(weight + inner[:, None] * NUM_EXPERTS + columns, mask=inside, other=0.0)
        total += row[:, None] * block
    return tl.sum(total, axis=0)[None, :]


@kernel
def _logits(
    hidden: tl.tensor,
    weight: tl.tensor,
    rows: tl.tensor,
    num_tokens: tl.tensor,
    WIDTH: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
) -> tl.tensor:
    """Multiply several rows: (BLOCK_TOKENS, BLOCK_EXPERTS)."""
    columns = tl.arange(0, BLOCK_EXPERTS)[None, :]
    total = tl.zeros((rows.shape[0], BLOCK_EXPERTS), tl.float32)
    for start in range(0, WIDTH, BLOCK_WIDTH):
        inner = start + tl.arange(0, BLOCK_WIDTH)
        is_row = (rows < num_tokens)[:, None] & (inner < WIDTH)[None, :]
        left = tl.load(hidden + rows[:, None] * WIDTH + inner[None, :], mask=is_row, other=0.0)
        inside = (inner < WIDTH)[:, None] & (columns < NUM_EXPERTS)
        right = tl.load(weight + inner[:, None] * NUM_EXPERTS + columns, mask=inside, other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")  # never TF32
    return total
