"""Sort pairs of token and expert by expert, so that an expert's pairs lie together."""

import triton.language as tl

from .triton_api import kernel


@kernel
def sort_by_expert(
    experts: tl.tensor,
    num_tokens: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
) -> None:
    """Write `order` int32 (N * K) and `starts` int32 (E + 1) from `experts` int64 (N, K).

    Pair p is token p // K with its choice p % K. The pairs of expert e are
    `order[starts[e]:starts[e + 1]]`, in rising order. There is one program for each expert: it
    counts what goes before its own pairs, then places them; no two programs write one place.
    A number that is no expert counts as the nearest one.
    """
    expert = tl.program_id(0)
    num_pairs = num_tokens * NUM_CHOSEN
    below = tl.zeros((BLOCK_PAIRS,), tl.int32)
    first = 0
    while first < num_pairs:
        pairs = first + tl.arange(0, BLOCK_PAIRS)
        below += (_expert_of(experts, pairs, num_pairs, NUM_EXPERTS) < expert).to(tl.int32)
        first += BLOCK_PAIRS
    place = tl.sum(below, axis=0)
    tl.store(starts + expert, place)
    if expert == NUM_EXPERTS - 1:
        tl.store(starts + NUM_EXPERTS, num_pairs)
    first = 0
    while first < num_pairs:
        pairs = first + tl.arange(0, BLOCK_PAIRS)
        is_mine = (_expert_of(experts, pairs, num_pairs, NUM_EXPERTS) == expert).to(tl.int32)
        places = place + tl.cumsum(is_mine, axis=0) - 1
        tl.store(order + places, pairs, mask=is_mine != 0)
        place += tl.sum(is_mine, axis=0)
        first += BLOCK_PAIRS


@kernel
def _expert_of(
    experts: tl.tensor, pairs: tl.tensor, num_pairs: tl.tensor, NUM_EXPERTS: tl.constexpr
) -> tl.tensor:
    """Read the experts of some pairs; behind the end, a number above all."""
    is_pair = pairs < num_pairs
    found = tl.load(experts + pairs, mask=is_pair, other=0)
    inside = tl.minimum(tl.maximum(found, 0), NUM_EXPERTS - 1)
    return tl.where(is_pair, inside, NUM_EXPERTS).to(tl.int32)
