"""Ways to cut a text into pieces, for everything that reads text in pieces."""

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np


def cuttings(text: str, *, num_random: int = 30, seed: int = 0) -> Iterator[list[str]]:
    """The whole, all characters, all cuttings at two places, random ones with empty pieces."""
    yield [text]
    yield list(text)
    for first, second in combinations(range(len(text) + 1), 2):
        yield [text[:first], text[first:second], text[second:]]
    generator = np.random.default_rng(seed)
    for _ in range(num_random):
        places = np.sort(generator.integers(0, len(text) + 1, size=len(text) // 3 + 2)).tolist()
        edges = [0, *places, len(text)]
        yield [text[a:b] for a, b in pairwise(edges)]
