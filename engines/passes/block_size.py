"""How many inputs share a scale in the blocks that stored codes are laid out in; without ONNX."""

from collections.abc import Sequence

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 128


def block_size(inputs: int, group: int | None) -> int:
    """Give the block of one matrix: the group; where all share a scale, what divides the inputs.

    A power of two up to 128. If none of 16 or more divides them, 16: the last block is then padded.
    """
    return group or max(SMALLEST_BLOCK, min(LARGEST_BLOCK, inputs & -inputs))


def common_block_size(inputs: Sequence[int], groups: Sequence[int | None]) -> int | None:
    """Give the block that several matrices can have alike; None if there is no such one.

    Args:
        inputs: of each matrix.
        groups: inputs that share a scale in each; None takes any block that divides its inputs.
    """
    given = {group for group in groups if group}
    if len(given) > 1:
        return None
    largest = min([LARGEST_BLOCK, *(size & -size for size in inputs)])
    block = given.pop() if given else largest
    fits = block >= SMALLEST_BLOCK and all(size % block == 0 for size in inputs)
    return block if fits else None
