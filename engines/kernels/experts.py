"""Multiply the rows of each expert with its own matrices, read as they are stored.

Matrices are stacks (E, in, out), rows beside each other. Codes meet the rows as they are, sums are
fp32, and scales meet the sums: so no weight is rounded a second time.
"""

import triton.language as tl

from .triton_api import kernel


@kernel
def grouped_up(
    hidden: tl.tensor,
    experts: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    gate: tl.tensor,
    gate_scale: tl.tensor,
    up: tl.tensor,
    up_scale: tl.tensor,
    inner: tl.tensor,
    NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    IS_PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
) -> None:
    """Write `inner` (N, K, I): silu(hidden @ gate[e]) * (hidden @ up[e]) for each pair.

    The program (column, tile) takes BLOCK_OUT columns of the pairs of one tile. `experts` is not
    read, `order` and `starts` say the same; it is there because the node has it, for its shape.
    """
    expert, begin, end = _find_tile(starts, NUM_EXPERTS, BLOCK_EXPERTS, BLOCK_PAIRS)
    if begin >= end:
        return
    pairs, is_pair = _load_pairs(order, begin, end, BLOCK_PAIRS)
    column = tl.program_id(0) * BLOCK_OUT
    rows = hidden + (pairs // NUM_CHOSEN)[:, None] * NUM_IN
    gated = tl.zeros((BLOCK_PAIRS, BLOCK_OUT), tl.float32)
    lifted = tl.zeros((BLOCK_PAIRS, BLOCK_OUT), tl.float32)
    for start in range(0, NUM_IN, BLOCK_IN):
        left = _load_rows(rows, is_pair, start, NUM_IN, BLOCK_IN)
        gated = _add_product(gated, left, gate, gate_scale, expert, start, column,
            NUM_IN, NUM_OUT, IS_PACKED, GROUP, BLOCK_IN, BLOCK_OUT)  # fmt: skip
        lifted = _add_product(lifted, left, up, up_scale, expert, start, column,
            NUM_IN, NUM_OUT, IS_PACKED, GROUP, BLOCK_IN, BLOCK_OUT)  # fmt: skip
    gated = _scale_columns(gated, gate_scale, expert, column, NUM_OUT, GROUP, BLOCK_OUT)
    lifted = _scale_columns(lifted, up_scale, expert, column, NUM_OUT, GROUP, BLOCK_OUT)
    result = gated / (1.0 + tl.exp(-gated)) * lifted
    _store_rows(inner, result, pairs, is_pair, column, NUM_OUT, BLOCK_OUT)


@kernel
def grouped_down(
    inner: tl.tensor,
    scores: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    down: tl.tensor,
    down_scale: tl.tensor,
    parts: tl.tensor,
    NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    IS_PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
) -> None:
    """Write `parts` (N, K, C): score * (inner @ down[e]) for each pair.

    The program (column, tile) takes BLOCK_OUT columns of the pairs of one tile. The sum over K is
    left to the graph: nothing is added by several programs, and results repeat bit by bit.
    """
    expert, begin, end = _find_tile(starts, NUM_EXPERTS, BLOCK_EXPERTS, BLOCK_PAIRS)
    if begin >= end:
        return
    pairs, is_pair = _load_pairs(order, begin, end, BLOCK_PAIRS)
    column = tl.program_id(0) * BLOCK_OUT
    rows = inner + pairs[:, None] * NUM_IN
    total = tl.zeros((BLOCK_PAIRS, BLOCK_OUT), tl.float32)
    for start in range(0, NUM_IN, BLOCK_IN):
        left = _load_rows(rows, is_pair, start, NUM_IN, BLOCK_IN)
        total = _add_product(total, left, down, down_scale, expert, start, column,
            NUM_IN, NUM_OUT, IS_PACKED, GROUP, BLOCK_IN, BLOCK_OUT)  # fmt: skip
    total = _scale_columns(total, down_scale, expert, column, NUM_OUT, GROUP, BLOCK_OUT)
    result = total * tl.load(scores + pairs, mask=is_pair, other=0.0)[:, None]
    _store_rows(parts, result, pairs, is_pair, column, NUM_OUT, BLOCK_OUT)


@kernel
def _find_tile(
    starts: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
) -> tl.tensor:
    """Find the expert of this program's tile, where the tile's pairs begin and the expert's end.

    Each expert has its pairs in tiles of BLOCK_PAIRS, the last one partly filled; behind all of
    them there are tiles without an expert, where begin = end = 0.
    """
    tile = tl.program_id(1)
    experts = tl.arange(0, BLOCK_EXPERTS)
    begins = tl.load(starts + experts, mask=experts < NUM_EXPERTS, other=0)
    ends = tl.load(starts + experts + 1, mask=experts < NUM_EXPERTS, other=0)
    num_tiles = (ends - begins + BLOCK_PAIRS - 1) // BLOCK_PAIRS
    last = tl.cumsum(num_tiles, axis=0)
    first = last - num_tiles
    is_here = (tile >= first) & (tile < last)
    expert = tl.sum(tl.where(is_here, experts, 0), axis=0)
    begin = tl.sum(tl.where(is_here, begins + (tile - first) * BLOCK_PAIRS, 0), axis=0)
    end = tl.sum(tl.where(is_here, ends, 0), axis=0)
    return expert.to(tl.int64), begin, end


@kernel
def _load_pairs(
    order: tl.tensor, begin: tl.tensor, end: tl.tensor, BLOCK_PAIRS: tl.constexpr
) -> tl.tensor:
    """Read the pairs of a tile, and say which there are."""
    places = begin + tl.arange(0, BLOCK_PAIRS)
    is_pair = places < end
    return tl.load(order + places, mask=is_pair, other=0).to(tl.int64), is_pair


@kernel
def _store_rows(
    target: tl.tensor,
    rows: tl.tensor,
    pairs: tl.tensor,
    is_pair: tl.tensor,
    column: tl.tensor,
    NUM_OUT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
) -> None:
    """Write each pair's piece of its row, rounded once."""
    columns = column + tl.arange(0, BLOCK_OUT)
    is_there = is_pair[:, None] & (columns < NUM_OUT)[None, :]
    places = target + pairs[:, None] * NUM_OUT + columns[None, :]
    tl.store(places, rows.to(target.dtype.element_ty), mask=is_there)


@kernel
def _load_rows(
    rows: tl.tensor,
    is_pair: tl.tensor,
    start: tl.tensor,
    NUM_IN: tl.constexpr,
    BLOCK_IN: tl.constexpr,
) -> tl.tensor:
    """Read a piece of some rows, zeros where there is none: (BLOCK_PAIRS, BLOCK_IN)."""
    inside = start + tl.arange(0, BLOCK_IN)
    is_there = is_pair[:, None] & (inside < NUM_IN)[None, :]
    return tl.load(rows + inside[None, :], mask=is_there, other=0.0)


@kernel
def _add_product(
    total: tl.tensor,
    left: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    expert: tl.tensor,
    start: tl.tensor,
    column: tl.tensor,
    NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr,
    IS_PACKED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
) -> tl.tensor:
    """Add the product with a block of an expert's codes; a block lies in one group of inputs."""
    inside = start + tl.arange(0, BLOCK_IN)
    columns = column + tl.arange(0, BLOCK_OUT)
    is_row = (inside < NUM_IN)[:, None]
    if IS_PACKED:  # two columns in a byte, the lower four bits first
        bytes_of = column // 2 + tl.arange(0, BLOCK_OUT // 2)
        matrix = codes + expert * (NUM_IN * (NUM_OUT // 2))
        source = matrix + inside[:, None] * (NUM_OUT // 2) + bytes_of[None, :]
        packed = tl.load(source, mask=is_row & (bytes_of < NUM_OUT // 2)[None, :], other=0)
        block = tl.interleave((packed << 4) >> 4, packed >> 4)
    else:
        matrix = codes + expert * (NUM_IN * NUM_OUT)
        source = matrix + inside[:, None] * NUM_OUT + columns[None, :]
        block = tl.load(source, mask=is_row & (columns < NUM_OUT)[None, :], other=0.0)
    right = block.to(left.dtype)
    if GROUP == 0:
        total = tl.dot(left, right, total, input_precision="ieee")
    else:
        steps = scale + (expert * (NUM_IN // GROUP) + start // GROUP) * NUM_OUT + columns
        step = tl.load(steps, mask=columns < NUM_OUT, other=0.0).to(tl.float32)
        total += tl.dot(left, right, input_precision="ieee") * step[None, :]
    return total


@kernel
def _scale_columns(
    total: tl.tensor,
    scale: tl.tensor,
    expert: tl.tensor,
    column: tl.tensor,
    NUM_OUT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
) -> tl.tensor:
    """Multiply sums by the scales that an expert has for each column, if there are such."""
    if scale is not None and GROUP == 0:
        columns = column + tl.arange(0, BLOCK_OUT)
        step = tl.load(scale + expert * NUM_OUT + columns, mask=columns < NUM_OUT, other=0.0)
        total = total * step.to(tl.float32)[None, :]
    return total
