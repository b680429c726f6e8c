"""Slots filled with random tokens, in which decoding and prompts are timed at any depth.

Knows the engine protocol alone, so that it times every target. Slots are filled once, by prompts in
chunks; a depth then is only where the next token goes, as with llama.cpp, whose cache is cut. Speed
does not depend on what the tokens are, but experts are chosen by them: random ones choose evenly.
"""

from collections.abc import Callable
from time import perf_counter

import numpy as np

from runtime.engine.protocol import Engine, IntArray
from runtime.generation.steps import decode_step, prefill


class FilledSlots:
    """Times steps of an engine; all its slots are overwritten."""

    def __init__(
        self,
        engine: Engine,
        *,
        vocab_size: int,
        seed: int = 1,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Begin with empty slots.

        Args:
            engine: whose slots nobody else uses.
            vocab_size: rows of its embedding table.
            seed: decides which tokens are run.
            clock: tells seconds.
        """
        self._engine, self._vocab_size, self._clock = engine, vocab_size, clock
        self._random = np.random.default_rng(seed)
        self._written = [0] * engine.limits.max_slots

    def fill(self, depth: int, *, batch: int = 1) -> None:
        """Write random tokens until the first `batch` slots have `depth`; others are copied."""
        missing = depth - self._written[0]
        if missing > 0:
            hidden = self._engine.embed(self._ids(missing))
            self._prefill(hidden, self._written[0])
            self._written[0] = depth
        for slot in range(1, batch):
            if self._written[slot] < depth:
                self._engine.copy_prefix(0, slot, depth)
                self._written[slot] = depth

    def decode(self, depth: int, tokens: int, *, batch: int = 1) -> list[float]:
        """Decode random tokens behind `depth` others in some slots: seconds for each step.

        A step is embedding, decoder, head and the choice of the best id.
        """
        self.fill(depth, batch=batch)
        slots = list(range(batch))
        seconds = []
        for place in range(depth, depth + tokens):
            ids = self._ids(batch).tolist()
            start = self._clock()
            decode_step(self._engine, self._engine.step_greedy, slots, ids, [place] * batch)
            seconds.append(self._clock() - start)
        for slot in slots:
            self._written[slot] = max(self._written[slot], depth + tokens)
        return seconds

    def prefill(self, tokens: int, depth: int = 0) -> float:
        """Run a prompt of random tokens in chunks behind `depth` others: seconds."""
        self.fill(depth)
        ids = self._ids(tokens)
        start = self._clock()
        self._prefill(self._engine.embed(ids), depth)
        seconds = self._clock() - start
        self._written[0] = max(self._written[0], depth + tokens)
        return seconds

    def _prefill(self, hidden: np.ndarray, start: int) -> None:
        engine = self._engine
        prefill(engine.step_greedy, 0, hidden, start, engine.limits.prefill_chunk)

    def _ids(self, count: int) -> IntArray:
        return self._random.integers(0, self._vocab_size, count)
