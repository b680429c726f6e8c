"""Where the time of one run goes; stands still while nobody works for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from .request import Timings


class RunClock:
    """Sums up the phases of one run, from its first unit of work."""

    def __init__(self) -> None:
        """Start with the first phase that is entered."""
        self._start: float | None = None
        self.encode_s = self.prefill_s = self.decode_s = 0.0
        self._first_s = 0.0

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Count an image."""
        start = self._now()
        yield
        self.encode_s += perf_counter() - start

    @contextmanager
    def prefilling(self) -> Iterator[None]:
        """Count a chunk of the prompt."""
        start = self._now()
        yield
        self.prefill_s += perf_counter() - start

    @contextmanager
    def taking(self, *, is_first: bool) -> Iterator[None]:
        """Count the choice of a token and the text that it gives."""
        start = self._now()
        yield
        end = perf_counter()
        if is_first:
            assert self._start is not None
            self._first_s = end - self._start
        else:
            self.decode_s += end - start

    def timings(self, queued_s: float, num_later: int) -> Timings:
        """Report; `num_later` tokens came after the first, `queued_s` before everything."""
        return Timings(
            queued_s=queued_s,
            encode_s=self.encode_s,
            prefill_s=self.prefill_s,
            time_to_first_token_s=self._first_s,
            decode_s=self.decode_s,
            decode_tokens_per_s=num_later / self.decode_s if self.decode_s else 0.0,
        )

    def _now(self) -> float:
        now = perf_counter()
        if self._start is None:
            self._start = now
        return now
