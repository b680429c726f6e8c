"""All layers and the head in one session; steps of decoding are recorded as CUDA graphs."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ... import names
from ...limits import Limits
from ..gpu.memory import Memory
from ..gpu.numbers import STORED, to_stored
from ..gpu.piecewise import HeadRows, Wanted, read_head
from ..protocol import FloatArray, IntArray
from .cache import LEAST_ROWS, SlotCache
from .provider import GRAPH_ID, UNRECORDED, Provider, named_error
from .tensor_types import TYPES

_MAX_ROWS = 64
"""Rows of logits that a run keeps room for, where there are no more slots than that."""
_MAX_RECORDINGS = 64
"""ONNX Runtime forgets no recording: steps of other sizes behind these run unrecorded."""
_MAX_BOUND = 64


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Everything that a binding, and a recording of it, depends on."""

    first_slot: int
    slot_rows: int
    """Tokens from one slot to the next: where a slot begins."""
    batch: int
    tokens: int
    window: int
    """Tokens of each slot that attention reads."""
    rows: int


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """Tensors bound to their addresses, and how they are run."""

    binding: ort.IOBinding
    options: ort.RunOptions


class Decoder:
    """Runs steps of slots that are neighbours in the cache."""

    def __init__(
        self,
        session: ort.InferenceSession,
        cache: SlotCache,
        layers: Sequence[str],
        *,
        limits: Limits,
        provider: Provider,
        memory: Memory,
    ) -> None:
        """Reserve buffers for the largest step.

        Args:
            session: of the graph of all layers and the head.
            cache: what the layers read and write.
            layers: names of the layers in the cache, in the graph's order.
            limits: slots, their capacity, tokens of a step.
            provider: what the session runs on.
            memory: of the device, to take from.
        """
        self._session, self._cache, self._layers = session, cache, layers
        self._limits, self._provider, self._device = limits, provider, memory.device
        values = (*session.get_inputs(), *session.get_outputs())
        self._types = {one.name: TYPES[one.type] for one in values}
        sizes = {one.name: one.shape[-1] for one in values}
        self._width, self._vocab_size = sizes[names.HIDDEN], sizes[names.LOGITS]
        self._max_rows = max(limits.max_slots, min(limits.prefill_chunk, _MAX_ROWS))
        counts = {
            names.HIDDEN: limits.max_slots * limits.prefill_chunk * self._width,
            names.LENGTHS: limits.max_slots,
            names.ROWS: self._max_rows,
            names.LOGITS: self._max_rows * self._vocab_size,
            names.BEST: self._max_rows,
            names.ENERGY: self._max_rows,
        }
        self._addresses = {
            name: memory.allocate(count * self._types[name].size) for name, count in counts.items()
        }
        self._bound: OrderedDict[_Sizes, _Bound] = OrderedDict()
        self._graph_ids: dict[_Sizes, str] = {}
        self._records = provider.can_record

    def reserve(self) -> None:
        """Run the largest steps once, and forget what they wrote.

        ONNX Runtime's arena grows with each larger step and keeps pieces that the next one is too
        large for; behind the largest ones it stays as it is.

        Raises:
            CapacityError: the device has too little memory for them.
        """
        limits = self._limits
        self._records = False  # it belongs to the thread that runs it, which this one need not be
        for batch, tokens in ((1, limits.prefill_chunk), (limits.max_slots, 1)):
            hidden = np.zeros((batch, tokens, self._width), dtype=np.float32)
            lengths = np.full(batch, limits.max_tokens - tokens, dtype=np.int64)
            rows = np.arange(min(batch * tokens, self._max_rows))
            self.run(0, hidden, lengths, rows, "best")
        self._records = self._provider.can_record
        self._bound.clear()
        for slot in range(limits.max_slots):
            self._cache.clear(slot)
        self._cache.fit(0, [0] * limits.max_slots)

    def run(
        self,
        first_slot: int,
        hidden: FloatArray,
        lengths: IntArray,
        rows: IntArray,
        wanted: Wanted,
    ) -> HeadRows:
        """Append tokens to some slots, as `PieceDecoder.run`.

        What a slot held behind `lengths` is gone. More rows than a run has room for take several
        runs, which write the same rows of the cache again.
        """
        batch, tokens, width = hidden.shape
        assert width == self._width, f"hidden states of {width}, the graph takes {self._width}"
        ends = [int(length) + tokens for length in lengths]
        self._cache.fit(first_slot, ends)
        # One slot's first rows are a block of memory; those of several are not, unless all are.
        slot_rows = self._cache.rows
        window = min(slot_rows, window_of(ends[0])) if batch == 1 else slot_rows
        self._write(names.HIDDEN, hidden)
        self._write(names.LENGTHS, lengths)
        found = []
        for start in range(0, max(1, len(rows)), self._max_rows):
            some = rows[start : start + self._max_rows]
            # A head without rows is nothing that its kernels were made for.
            self._write(names.ROWS, some if len(some) else np.zeros(1, dtype=np.int64))
            sizes = _Sizes(
                first_slot=first_slot,
                slot_rows=slot_rows,
                batch=batch,
                tokens=tokens,
                window=window,
                rows=max(1, len(some)),
            )
            self._run(sizes)
            found.append(read_head(wanted, (len(some), self._vocab_size), self._copied))
        return HeadRows(*map(np.concatenate, zip(*found, strict=True)))

    def _run(self, sizes: _Sizes) -> None:
        bound = self._bound.get(sizes) or self._bind(sizes)
        self._bound[sizes] = bound
        self._bound.move_to_end(sizes)
        if len(self._bound) > _MAX_BOUND:
            self._bound.popitem(last=False)
        try:
            self._session.run_with_iobinding(bound.binding, bound.options)
            bound.binding.synchronize_outputs()  # the device's stream is not ONNX Runtime's
        except Exception as error:  # the bindings raise many types without a common base
            raise named_error(error, "a step of the decoder") from error

    def _bind(self, sizes: _Sizes) -> _Bound:
        binding = self._session.io_binding()
        shapes = {
            names.HIDDEN: (sizes.batch, sizes.tokens, self._width),
            names.LENGTHS: (sizes.batch,),
            names.ROWS: (sizes.rows,),
            names.LOGITS: (sizes.rows, self._vocab_size),
            names.BEST: (sizes.rows,),
            names.ENERGY: (sizes.rows,),
        }
        for name, shape in shapes.items():
            is_input = name in (names.HIDDEN, names.LENGTHS, names.ROWS)
            bind = binding.bind_input if is_input else binding.bind_output
            bind(*self._place(name, shape, self._addresses[name]))
        widths = {one.name: one.shape[-1] for one in self._session.get_inputs()}
        for place, layer in enumerate(self._layers):
            for name, address in self._cache.addresses(layer, sizes.first_slot).items():
                called = names.place_name(place, name)
                shape = (sizes.batch, 1, sizes.window, widths[called])
                binding.bind_input(*self._place(called, shape, address))
                binding.bind_output(*self._place(names.output_of(called), shape, address))
        options = ort.RunOptions()
        options.add_run_config_entry(GRAPH_ID, self._graph_id(sizes))
        return _Bound(binding=binding, options=options)

    def _place(
        self, name: str, shape: tuple[int, ...], address: int
    ) -> tuple[str, str, int, int, tuple[int, ...], int]:
        """Say where a tensor is, as bindings want it."""
        return name, self._provider.device_type, 0, self._types[name].number, shape, address

    def _graph_id(self, sizes: _Sizes) -> str:
        """Number what is worth recording: steps of one token, as long as there is room."""
        is_worth_it = self._records and sizes.tokens == 1
        if is_worth_it and len(self._graph_ids) < _MAX_RECORDINGS:
            self._graph_ids.setdefault(sizes, str(len(self._graph_ids) + 1))
        return self._graph_ids.get(sizes, UNRECORDED)

    def _write(self, name: str, values: NDArray[Any]) -> None:
        self._device.write(self._addresses[name], to_stored(values, self._types[name].stored))

    def _copied(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        values: NDArray[Any] = np.empty(shape, dtype=STORED[self._types[name].stored])
        if values.size:
            self._device.read(self._addresses[name], values)
        return values


def window_of(needed: int) -> int:
    """Give the rows of one slot that attention reads where so many are needed.

    A multiple of 256, then one of four to a doubling: few windows are recorded, and at most a
    quarter is read in vain.
    """
    step = LEAST_ROWS
    while needed > 8 * step:
        step *= 2
    return -(-needed // step) * step
