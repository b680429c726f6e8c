"""All layers and the head, one after the other on the device; decoding steps are recorded once."""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ... import names
from ...limits import Limits
from ..gpu.device import Handle
from ..gpu.memory import Memory
from ..gpu.numbers import STORED, to_stored
from ..gpu.piecewise import HeadRows, Wanted
from ..protocol import FloatArray, IntArray
from .contract import cache_names
from .head import Head
from .memory import DeviceCache
from .plan import Plan, Shape
from .stage import Stage

WINDOW_STEP = 256
"""Attention reads the cache in multiples of this: each new shape is compiled and recorded."""
_MAX_RECORDINGS = 32


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Everything that a recording depends on."""

    first_slot: int
    batch: int
    tokens: int
    window: int
    rows: int


class LayerGroup(NamedTuple):
    """Layers that one plan runs, one behind the other."""

    layers: tuple[str, ...]
    stage: Stage


class Decoder:
    """Runs steps of slots that are neighbours in the cache."""

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        head: Head,
        cache: DeviceCache,
        *,
        width: int,
        limits: Limits,
        memory: Memory,
    ) -> None:
        """Reserve buffers for the largest step.

        Args:
            groups: all layers, in order.
            head: what follows them.
            cache: what the layers read and write.
            width: C.
            limits: slots, their capacity, tokens of a step.
            memory: of the device, to take from.
        """
        self._groups, self._head, self._cache, self._device = groups, head, cache, memory.device
        self._width, self._limits = width, limits
        first = groups[0].stage.plan
        self._dtype, self._lengths_dtype = first.dtype(names.HIDDEN), first.dtype(names.LENGTHS)
        tokens = limits.max_slots * limits.prefill_chunk
        size = np.dtype(STORED[self._dtype]).itemsize
        self._hidden = [memory.allocate(tokens * width * size) for _ in range(2)]
        self._lengths = memory.allocate(8 * limits.max_slots)
        self._window = memory.allocate(4 * limits.max_tokens)
        self._recordings: OrderedDict[_Sizes, Handle | None] = OrderedDict()
        self._records = True

    def run(
        self,
        first_slot: int,
        hidden: FloatArray,
        lengths: IntArray,
        rows: IntArray,
        wanted: Wanted,
    ) -> HeadRows:
        """Append tokens to some slots, as `PieceDecoder.run`."""
        batch, tokens = hidden.shape[:2]
        needed = int(lengths.max()) + tokens
        window = min(self._limits.max_tokens, -(-needed // WINDOW_STEP) * WINDOW_STEP)
        self._device.write(self._hidden[0], to_stored(hidden, self._dtype))
        self._device.write(self._lengths, to_stored(lengths, self._lengths_dtype))
        max_rows = self._head.max_rows
        some = rows[:max_rows]
        sizes = _Sizes(
            first_slot=first_slot, batch=batch, tokens=tokens, window=window, rows=len(some)
        )
        if len(some):
            self._head.write_rows(some)
        if tokens == 1:
            self._decode(sizes)
        else:
            self._enqueue(sizes)
        found = [self._head.read(wanted, len(some))]
        for start in range(max_rows, len(rows), max_rows):
            some = rows[start : start + max_rows]
            self._head.write_rows(some)
            self._enqueue_head(batch, tokens, len(some))
            found.append(self._head.read(wanted, len(some)))
        return HeadRows(*map(np.concatenate, zip(*found, strict=True)))

    def _decode(self, sizes: _Sizes) -> None:
        """Run a step twice, then replay what was recorded behind the second run.

        The first run is in contexts that all steps share: the last step before a longer window
        comes once. The second is in contexts of its own, which compile and choose kernels there,
        since a recording may not.
        """
        recording = self._recordings.get(sizes)
        if recording is not None:
            self._recordings.move_to_end(sizes)
            self._device.replay(recording)
        elif sizes in self._recordings and self._records:
            self._enqueue(sizes, owner=sizes)
            self._records = self._can_be_recorded(sizes)
            if self._records:
                again = functools.partial(self._enqueue, sizes, owner=sizes)
                self._recordings[sizes] = self._device.record(again)
        else:
            self._enqueue(sizes)
            self._recordings[sizes] = None
            if len(self._recordings) > _MAX_RECORDINGS:
                self._forget_oldest()

    def _can_be_recorded(self, sizes: _Sizes) -> bool:
        return all(plan.can_be_recorded(sizes) for plan in self._plans)

    def forget_recordings(self) -> None:
        """Give all recordings back."""
        while self._recordings:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        sizes, recording = self._recordings.popitem(last=False)
        if recording is not None:
            self._device.forget(recording)
        for plan in self._plans:
            plan.forget(sizes)

    @property
    def _plans(self) -> list[Plan]:
        return [*(group.stage.plan for group in self._groups), self._head.plan]

    def _enqueue(self, sizes: _Sizes, owner: _Sizes | None = None) -> None:
        """Ask for all layers, then for the head if it has rows."""
        hidden = (sizes.batch, sizes.tokens, self._width)
        source, target = self._hidden
        for group in self._groups:
            plan, cache = group.stage.plan, self._cache_of(group, sizes.first_slot)
            shapes: dict[str, Shape] = {
                names.HIDDEN: hidden,
                names.LENGTHS: (sizes.batch,),
                names.WINDOW: (sizes.window,),
                **{one: (sizes.batch, *plan.shape(one)[1:]) for one in cache},
            }
            addresses = {
                names.HIDDEN: source,
                names.HIDDEN_OUT: target,
                names.LENGTHS: self._lengths,
                names.WINDOW: self._window,
                **cache,
                **{names.output_of(one): address for one, address in cache.items()},
            }
            group.stage.enqueue(shapes, addresses, owner)
            source, target = target, source
        if sizes.rows:
            self._enqueue_head(sizes.batch, sizes.tokens, sizes.rows, owner)

    def _cache_of(self, group: LayerGroup, first_slot: int) -> dict[str, int]:
        """Give the addresses of all cache tensors of a group, as its plan calls them."""
        found = {}
        called = cache_names(self._cache.tensors, len(group.layers))
        for layer, names_here in zip(group.layers, called, strict=True):
            for name, address in self._cache.addresses(layer, first_slot).items():
                found[names_here[name]] = address
        return found

    def _enqueue_head(
        self, batch: int, tokens: int, num_rows: int, owner: _Sizes | None = None
    ) -> None:
        last = self._hidden[len(self._groups) % 2]
        self._head.enqueue(last, (batch, tokens, self._width), num_rows, owner)
