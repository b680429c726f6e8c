"""The decoder layers on ONNX Runtime: one session each, the cache written in place.

Two ways to the same result. Graphs whose kernels read only what the lengths say get whole slots,
bound once and run again; all others get a window that ends behind the last token.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime as ort

from ... import names
from ..protocol import FloatArray, IntArray
from .cache import LatentCache, Window

Observer = Callable[[int, dict[str, np.ndarray]], None]
"""Told the router's decisions of a layer after each step: layer number, tap name to values."""

_TAPS = (names.TAP_EXPERTS, names.TAP_SCORES, names.TAP_MARGIN)
_MAX_BOUND = 4
"""Steps of different slots or sizes whose buffers are kept."""


class CpuLayers:
    """Runs all layers, one behind the other."""

    def __init__(
        self,
        sessions: Mapping[int, ort.InferenceSession],
        cache: LatentCache,
        *,
        read_whole_slots: bool,
        observer: Observer | None = None,
    ) -> None:
        """Join sessions and cache.

        Args:
            sessions: by the number of the layer, in order.
            cache: of as many layers.
            read_whole_slots: whether the layers' kernels leave alone what is behind the tokens.
            observer: told the taps of an artifact that was exported with them.
        """
        self._sessions, self._cache, self._observer = sessions, cache, observer
        self._read_whole_slots = read_whole_slots and observer is None
        self._bound: OrderedDict[tuple[int, int, int], _BoundStep] = OrderedDict()

    def run(self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray) -> ort.OrtValue:
        """Append S tokens to each of B slots.

        Args:
            slots: B different ones.
            hidden: (B, S, C).
            lengths: tokens already in each slot, (B,).

        Returns:
            Hidden states (B, S, C); they hold until the next run.
        """
        first, count = slots[0], len(slots)
        if self._read_whole_slots and list(slots) == list(range(first, first + count)):
            return self._bound_step(first, hidden.shape).run(hidden, lengths)
        return self._run_in_windows(slots, hidden, lengths)

    def _bound_step(self, first_slot: int, shape: tuple[int, ...]) -> "_BoundStep":
        batch, tokens, width = shape
        key = (first_slot, batch, tokens)
        if key not in self._bound:
            if len(self._bound) == _MAX_BOUND:
                self._bound.popitem(last=False)
            windows = self._cache.whole(slice(first_slot, first_slot + batch))
            sessions = list(self._sessions.values())
            self._bound[key] = _BoundStep(sessions, windows, (batch, tokens, width))
        self._bound.move_to_end(key)
        return self._bound[key]

    def _run_in_windows(
        self, slots: Sequence[int], hidden: FloatArray, lengths: IntArray
    ) -> ort.OrtValue:
        state = _wrapped(np.ascontiguousarray(hidden))
        counts = _wrapped(np.ascontiguousarray(lengths))
        for place, (number, session) in enumerate(self._sessions.items()):
            with self._cache.window(place, slots, lengths.tolist(), hidden.shape[1]) as window:
                binding = _bind(session, state, window, counts)
                binding.bind_output(names.HIDDEN_OUT)
                taps = _TAPS if self._has_taps(session, window) else ()
                for tap in taps:
                    binding.bind_output(tap)
                session.run_with_iobinding(binding)
                outputs = dict(zip(_output_names(window, taps), binding.get_outputs(), strict=True))
                state = outputs[names.HIDDEN_OUT]
                if taps and self._observer is not None:
                    self._observer(number, {tap: outputs[tap].numpy() for tap in taps})
        return state

    def _has_taps(self, session: ort.InferenceSession, window: Window) -> bool:
        return self._observer is not None and len(session.get_outputs()) > 1 + len(window)


class _BoundStep:
    """A step whose tensors have their places: bound once, run for every token."""

    def __init__(
        self,
        sessions: Sequence[ort.InferenceSession],
        windows: Sequence[Window],
        shape: tuple[int, int, int],
    ) -> None:
        """Reserve buffers for (B, S, C) and bind every session."""
        self._hidden = [np.empty(shape, dtype=np.float32) for _ in range(2)]
        self._lengths = np.empty(shape[0], dtype=np.int64)
        self._states = [_wrapped(one) for one in self._hidden]
        counts = _wrapped(self._lengths)
        self._runs = []
        for place, (session, window) in enumerate(zip(sessions, windows, strict=True)):
            binding = _bind(session, self._states[place % 2], window, counts)
            binding.bind_ortvalue_output(names.HIDDEN_OUT, self._states[(place + 1) % 2])
            self._runs.append((session, binding))

    def run(self, hidden: FloatArray, lengths: IntArray) -> ort.OrtValue:
        """Run all layers on new tokens."""
        np.copyto(self._hidden[0], hidden)
        np.copyto(self._lengths, lengths)
        for session, binding in self._runs:
            session.run_with_iobinding(binding)
        return self._states[len(self._runs) % 2]


def _wrapped(values: np.ndarray) -> ort.OrtValue:
    """Hand an array's own memory to ONNX Runtime."""
    return ort.OrtValue.ortvalue_from_numpy(values)


def _bind(
    session: ort.InferenceSession, hidden: ort.OrtValue, window: Window, lengths: ort.OrtValue
) -> ort.IOBinding:
    """Bind everything but the hidden states that come out; the cache is written in place."""
    binding = session.io_binding()
    binding.bind_ortvalue_input(names.HIDDEN, hidden)
    binding.bind_ortvalue_input(names.LENGTHS, lengths)
    for name, values in window.items():
        value = _wrapped(values)
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(names.output_of(name), value)
    return binding


def _output_names(window: Window, taps: Sequence[str]) -> list[str]:
    """Name a binding's outputs, in the order in which they were bound."""
    return [*map(names.output_of, window), names.HIDDEN_OUT, *taps]
